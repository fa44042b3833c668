"""UniPC (Zhao et al. 2023, 2302.04867, Alg. 1 and 2): a predictor, and a corrector that costs no evaluation."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from edm_fast.errors import UserError
from edm_fast.sampling import loop
from edm_fast.sampling.solvers._multistep import (
    MAX_ORDER,
    checked_choice,
    checked_lowering,
    checked_order,
    dynamic_threshold,
    points,
)


def unipc(
    levels: Sequence[float],
    *,
    order: int = 3,
    variant: str = "bh2",
    form: str = "data",
    lower_order_final: bool | str = True,
    disable_corrector: Collection[int] = (),
    dynamic_thresholding: bool = False,
) -> loop.Solver:
    """y from the last `order` points, then the step again with D(y; sigma'), which serves as D at the next level.

    variant: B(z) = z ("bh1") or e^z - 1 ("bh2"). form: on D (z = -h, h = lambda' - lambda), or "noise", on
    d = (x - D)/sigma (z = h). No correction at the last level, nor after the steps in disable_corrector. A step to 0 is
    x = D. lower_order_final: at most as many points as steps are left. dynamic_thresholding: see `dpmpp`.
    """
    order = checked_order(order, MAX_ORDER - 1)
    checked_choice("variant", variant, ("bh1", "bh2"))
    checked_choice("form", form, ("data", "noise"))
    lower_order_final = checked_lowering(lower_order_final)
    if not isinstance(disable_corrector, Collection) or isinstance(disable_corrector, str):
        raise UserError(f"disable_corrector is {disable_corrector!r}; expected a list of steps such as [0, 1]")
    steps, count, evaluated = [], len(levels) - 1, False
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        n = 1 if sigma_next == 0 else points(order, i, count, lower_order_final)
        predict, correct = _weights(levels[i - n + 1 : i + 2], variant, form)
        base: dict[str, Any] = {"a": sigma_next / sigma} if form == "data" else {}
        parts = [loop.move(predict, **base) if evaluated else _evaluation(form, sigma, predict, base)]
        evaluated = i + 1 < count and i not in disable_corrector
        if evaluated:
            parts.append(_evaluation(form, sigma_next, correct, base))
        steps.append(loop.step(*parts))
    return loop.Solver(levels, steps, limit=dynamic_threshold if dynamic_thresholding else None)


def _evaluation(form: str, sigma: float, weights: list[float], base: dict[str, Any]) -> tuple[loop.Stage, list[float]]:
    return loop.slope(sigma, weights, t=sigma, **base) if form == "noise" else loop.data(sigma, weights, **base)


def _weights(levels: Sequence[float], variant: str, form: str) -> tuple[list[float], list[float]]:
    """Of the predictor, for the newest point first; of the corrector, for the point at the end of the step before them.

    levels: those of the points, oldest first, and of the end.
    """
    *past, sigma, sigma_next = levels
    if sigma_next == 0:
        return [1.0 if form == "data" else -sigma], []
    h = math.log(sigma / sigma_next)
    z, scale = (-h, 1.0) if form == "data" else (h, sigma_next)
    P1 = math.expm1(z)
    B = z if variant == "bh1" else P1
    r = np.array([math.log(sigma / level) / h for level in reversed(past)] + [1.0])  # (n,)
    n = len(r)
    psi = [P1 / z - 1]
    for j in range(1, n):
        psi.append(psi[-1] / z - 1 / math.factorial(j + 1))
    v = np.array([math.factorial(j + 1) * psi[j] / B for j in range(n)])
    R = r ** np.arange(n)[:, None]
    rho_p = np.full(n - 1, 0.5) if n <= 2 else np.linalg.solve(R[:-1, :-1], v[:-1])
    rho_c = np.full(1, 0.5) if n == 1 else np.linalg.solve(R, v)

    def with_differences(rho: np.ndarray) -> np.ndarray:
        """-P1 m_i - B sum_k rho_k (m_{i-k} - m_i)/r_k over the past points, in terms of m_i, m_{i-1}, ..."""
        w = -B * rho[: n - 1] / r[: n - 1]
        return np.array([-P1 - w.sum(), *w])

    correct = with_differences(rho_c)
    correct[0] += B * rho_c[-1]
    return (scale * with_differences(rho_p)).tolist(), (scale * np.array([-B * rho_c[-1], *correct])).tolist()


SOLVERS = {"unipc": unipc}
