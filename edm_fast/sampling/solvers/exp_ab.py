"""Exponential Adams-Bashforth of any order in lambda = -ln sigma, exact, on D or on d. A step to 0 is x = D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._multistep import checked_lowering, checked_order, integrals, latest, points


def exp_ab_x(levels: Sequence[float], *, order: int = 3, lower_order_final: bool | str = False) -> loop.Solver:
    """x' = (sigma'/sigma) x + sum_k D_{i-k} int_lambda^lambda' e^{-(lambda' - u)} l_k(u) du.

    Order 2 is DPM-Solver++(2M) of type "heun"; order 3 is what its 3M means to be.
    """
    order, lower_order_final = checked_order(order), checked_lowering(lower_order_final)
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        w = [1.0]
        if sigma_next > 0:
            n = points(order, i, len(levels) - 1, lower_order_final)
            nodes, ends = -np.log(latest(levels, i, n)), (-math.log(sigma), -math.log(sigma_next))
            w = [sigma_next * w for w in integrals(nodes, *ends, np.exp)]
        steps.append(loop.step(loop.data(sigma, w, a=sigma_next / sigma)))
    return loop.Solver(levels, steps)


def exp_ab_eps(levels: Sequence[float], *, order: int = 3, lower_order_final: bool | str = False) -> loop.Solver:
    """x' = x - sum_k d_{i-k} int_lambda^lambda' e^{-u} l_k(u) du. Order 1 is DDIM.

    Zhang & Chen 2022 (DEIS) with lambda as the clock, as in diffusers' `DEISMultistepScheduler`.
    """
    order, lower_order_final = checked_order(order), checked_lowering(lower_order_final)
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        w = [-sigma]
        if sigma_next > 0:
            n = points(order, i, len(levels) - 1, lower_order_final)
            nodes, ends = -np.log(latest(levels, i, n)), (-math.log(sigma), -math.log(sigma_next))
            w = integrals(nodes, *ends, lambda u: -np.exp(-u))
        steps.append(loop.step(loop.slope(sigma, w, t=sigma)))
    return loop.Solver(levels, steps)


SOLVERS = {"exp_ab_x": exp_ab_x, "exp_ab_eps": exp_ab_eps}
