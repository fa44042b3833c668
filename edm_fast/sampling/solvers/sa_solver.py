"""SA-Solver (Xue et al. 2023, 2309.05019): stochastic Adams, a predictor and a corrector that costs no evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling.solvers._multistep import (
    checked_choice,
    checked_lowering,
    checked_order,
    integrals,
    latest,
    points,
)
from edm_fast.sampling.solvers._noise import checked_amount, noise


def sa_solver(
    levels: Sequence[float],
    *,
    predictor_order: int = 3,
    corrector_order: int = 4,
    tau: float | Sequence[float] = 1,
    lower_order_final: bool = True,
    two_points: str = "published",
) -> loop.Solver:
    """x' = (sigma'/sigma) e^{-tau^2 h} x + sum_k b_k D_k + sigma' sqrt(1 - e^{-2 tau^2 h}) eps,
    b_k = int_lambda^lambda' kappa e^{-kappa (lambda' - u)} l_k(u) du, kappa = 1 + tau^2, h = lambda' - lambda.

    The predictor uses the last predictor_order points. With D at its end, the step is done again from x with the same
    eps and corrector_order points, D at the end included, which then serves as D at the next level. No correction at
    the last level; a step to 0 is x = D.
    tau: the amount of noise, 0 for the ODE; or (tau, lo, hi), which is 0 for steps from levels outside of [lo, hi].
    lower_order_final: no more points than steps are left. two_points: "exact", or "published", where two points are
    weighted as in UniPC with B(z) = z. One draw a step.
    """
    predictor_order = checked_order(predictor_order, name="predictor_order")
    corrector_order = checked_order(corrector_order, name="corrector_order")
    lower_order_final = bool(checked_lowering(lower_order_final, (True, False)))
    checked_choice("two_points", two_points, ("published", "exact"))
    amount, lo, hi = _interval(tau)
    steps, count = [], len(levels) - 1
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        t2 = amount**2 if lo <= sigma <= hi else 0.0
        decay = (sigma_next / sigma) ** t2  # e^{-tau^2 h}
        common = {"a": sigma_next / sigma * decay, **noise(sigma_next * math.sqrt(1 - decay**2))}
        n = 1 if sigma_next == 0 else points(predictor_order, i, count, lower_order_final)
        predict = _weights(latest(levels, i, n), sigma, sigma_next, t2, two_points)
        parts = [loop.move(predict, **common) if i else loop.data(sigma, predict, **common)]
        if i + 1 < count:
            n = points(corrector_order, i + 1, count + 2, lower_order_final)
            correct = _weights(latest(levels, i + 1, n), sigma, sigma_next, t2, two_points)
            parts.append(loop.data(sigma_next, correct, **common))
        steps.append(loop.step(*parts, draws=1))
    return loop.Solver(levels, steps)


def _interval(tau: Any) -> tuple[float, float, float]:
    """(tau, lo, hi)"""
    if not isinstance(tau, Sequence) or isinstance(tau, str):
        return checked_amount("tau", tau), 0.0, math.inf
    if len(tau) != 3:
        raise UserError(f"tau is {tau}; expected a number or three: tau, lo and hi")
    amount, lo, hi = checked_amount("tau", tau[0]), _arguments.number("tau", tau[1]), _arguments.number("tau", tau[2])
    if not lo <= hi:
        raise UserError(f"tau is {tau}; expected tau, lo and hi with lo <= hi")
    return amount, lo, hi


def _weights(sigmas: np.ndarray, start: float, end: float, t2: float, two_points: str) -> list[float]:
    """b_k for points at these levels, newest first, of a step from `start` to `end`."""
    if end == 0:
        return [1.0]
    kappa, nodes, ends = 1 + t2, -np.log(sigmas), (-math.log(start), -math.log(end))
    b = integrals(nodes, *ends, lambda u: kappa * np.exp(-kappa * (ends[1] - u)))
    if len(b) == 2 and two_points == "published":
        z = kappa * (ends[1] - ends[0])
        delta = (z**2 / 2 - z - math.expm1(-z)) / kappa / (nodes[0] - nodes[1])
        b = [b[0] + delta, b[1] - delta]
    return b


SOLVERS = {"sa_solver": sa_solver}
