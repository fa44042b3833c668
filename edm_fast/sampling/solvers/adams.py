"""Adams-Bashforth methods in sigma: x' = x + sum_k w_k d_{i-k}. The first steps use the points there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._multistep import checked_order, integrals, latest, points

ROWS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def adams(levels: Sequence[float], *, order: int = 4) -> loop.Solver:
    """w_k = int_sigma^sigma' l_k(u) du with l_k the Lagrange basis on the last `order` levels.

    Also known as LMS, zAB and DEIS-rhoAB (Zhang & Chen 2022).
    """
    return _solver(levels, checked_order(order), lambda i, n: integrals(latest(levels, i, n), levels[i], levels[i + 1]))


def ipndm(levels: Sequence[float], *, order: int = 4, afs: bool = False) -> loop.Solver:
    """w_k = (sigma' - sigma) A_k with the Adams-Bashforth row A of even levels, whatever the levels are.

    Improved PNDM, Zhang & Chen 2022, appendix. afs: the first slope is x/sqrt(1 + sigma_0^2) and costs no evaluation.
    """
    return _solver(
        levels, checked_order(order, 4), lambda i, n: [(levels[i + 1] - levels[i]) * A for A in ROWS[n - 1]], afs
    )


def ipndm_v(levels: Sequence[float], *, order: int = 4) -> loop.Solver:
    """The variable-step iPNDM of its published table. From order 3 on its weights are not those of `adams`."""

    def weights(i: int, n: int) -> list[float]:
        h = [levels[i - k + 1] - levels[i - k] for k in range(n)]
        w = np.zeros(n)
        w[0] = 1
        if n >= 2:
            w[:2] += h[0] / (2 * h[1]) * np.array([1, -1])
        if n >= 3:
            q, s = h[0] * (h[0] + h[1]) / (h[1] * (h[1] + h[2])), h[1] / h[2]
            w[:3] += (1 - q * h[0] / (3 * (h[0] + h[1]))) / 2 * np.array([1, -(1 + s), s])
        if n >= 4:
            u = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
            T = (1 - h[0] / (3 * (h[0] + h[1]))) / 2
            T += (1 - h[0] / (2 * (h[0] + h[1]))) * h[0] / (6 * (h[0] + h[1] + h[2]))
            T *= h[0] * (h[0] + h[1]) * (h[0] + h[1] + h[2]) / (h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3]))
            w += T * np.array([1, -(1 + s + u), s + u * (1 + h[2] / h[3]), -u * s])
        return (h[0] * w).tolist()

    return _solver(levels, checked_order(order, 4), weights)


def _solver(
    levels: Sequence[float], order: int, weights: Callable[[int, int], list[float]], afs: bool = False
) -> loop.Solver:
    """weights(i, n): the w_k of step i with n points."""
    steps = []
    for i, sigma in enumerate(levels[:-1]):
        w = weights(i, points(order, i, len(levels) - 1))
        if afs and len(w) == i + 1:  # the oldest entry is x itself
            w[-1] /= (1 + levels[0] ** 2) ** 0.5
        steps.append(loop.step(loop.state(w) if afs and i == 0 else loop.slope(sigma, w, t=sigma)))
    return loop.Solver(levels, steps)


SOLVERS = {"adams": adams, "ipndm": ipndm, "ipndm_v": ipndm_v}
