"""DPM-Solver++ multistep (Lu et al. 2022, 2211.01095): 1, 2 and 3 points in lambda = -ln sigma, on D or on d."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._multistep import (
    checked_choice,
    checked_lowering,
    checked_order,
    dynamic_threshold,
    phi_weights,
    points,
)


def dpmpp(
    levels: Sequence[float],
    *,
    order: int = 2,
    solver_type: str = "midpoint",
    form: str = "data",
    lower_order_final: bool | str = True,
    dynamic_thresholding: bool = False,
    exact: bool = False,
) -> loop.Solver:
    """x' = (sigma'/sigma) x - p1 D_i + terms in D_i - D_{i-1} and so on; p1 = e^{-h} - 1, h = lambda' - lambda.

    solver_type, for order 2: "midpoint" (Alg. 2) or "heun". Order 3, which the published code alone has, lacks a
    factor 2 in its second derivative and is of second order; `exact` puts it there. form: "noise" is the multistep
    DPM-Solver, on d = (x - D)/sigma. lower_order_final: at most as many points as steps are left; "short": in runs of
    fewer than 15 steps. A step to 0 is x = D. dynamic_thresholding scales each D to [-1, 1] by a quantile of |D|.
    """
    order = checked_order(order, 3)
    checked_choice("solver_type", solver_type, ("midpoint", "heun"))
    checked_choice("form", form, ("data", "noise"))
    lower_order_final = checked_lowering(lower_order_final)
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        n = 1 if sigma_next == 0 else points(order, i, len(levels) - 1, lower_order_final)
        h = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        r = [math.log(levels[i - k - 1] / levels[i - k]) / h for k in range(n - 1)]
        if form == "data":
            part = loop.data(sigma, phi_weights(-h, r, solver_type, exact), a=sigma_next / sigma)
        else:
            w = [sigma_next * w for w in phi_weights(h, r, solver_type, exact)] if sigma_next > 0 else [-sigma]
            part = loop.slope(sigma, w, t=sigma)
        steps.append(loop.step(part))
    return loop.Solver(levels, steps, limit=dynamic_threshold if dynamic_thresholding else None)


SOLVERS = {"dpmpp": dpmpp}
