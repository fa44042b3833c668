"""DEIS-tAB: Adams-Bashforth in the time of the VP process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edm_fast.sampling import loop
from edm_fast.sampling.levels import vp_clock
from edm_fast.sampling.solvers._multistep import checked_order, integrals, latest, points

CLOCK = 0.002, 80.0  # whatever the levels, as published


def deis_tab(levels: Sequence[float], *, order: int = 4) -> loop.Solver:
    """x' = x + sum_k w_k d_{i-k}, w_k = int_T(sigma)^T(sigma') l_k(t) S'(t) dt with `order` points in t.

    Zhang & Chen 2022, Eq. 14 and 15; their tAB3 has order 4 here. The first step and one to 0 are Euler's, which is
    exact for one point. The integrals are exact; the published sum of 10,000 terms differs from them by 5e-5.
    """
    order, clock = checked_order(order), vp_clock(*CLOCK)
    times = clock.sigma_inv(torch.tensor(levels, dtype=torch.float64, device="cpu")).tolist()

    def density(t: np.ndarray) -> np.ndarray:
        times = torch.from_numpy(t)
        return clock.sigma_deriv(times, clock.sigma(times)).numpy()

    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        n = 1 if sigma_next == 0 else points(order, i, len(levels) - 1)
        if n == 1:
            w = [sigma_next - sigma]
        else:
            w = integrals(latest(times, i, n), times[i], times[i + 1], density, pieces=8)
        steps.append(loop.step(loop.slope(sigma, w, t=sigma)))
    return loop.Solver(levels, steps)


SOLVERS = {"deis_tab": deis_tab}
