"""Solvers without a history: Euler, Heun and DPM-Solver-2. A step to level 0 is Euler's, x = D."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._runge_kutta import checked_ratio, dx_dsigma, first_order, heun_step


def euler(levels: Sequence[float]) -> loop.Solver:
    """x' = x + (sigma' - sigma) d: DDIM (Song et al. 2021)."""
    pairs = itertools.pairwise(levels)
    return loop.Solver(levels, [loop.step(*first_order(dx_dsigma, *pair)) for pair in pairs])


def heun(levels: Sequence[float]) -> loop.Solver:
    """x' = x + (sigma' - sigma) (d + d_y)/2 with y the Euler step. Karras et al. 2022, Alg. 1."""
    return loop.Solver(levels, [loop.step(*heun_step(*pair)) for pair in itertools.pairwise(levels)])


def dpm2(levels: Sequence[float], *, r: float = 0.5) -> loop.Solver:
    """mu = sigma^{1-r} sigma'^r, y = x + (mu - sigma) d, x' = x + (sigma' - sigma) ((1 - 1/(2r)) d + d_y/(2r)).

    DPM-Solver-2, Lu et al. 2022, Alg. 1; r = 1/2 is the midpoint in log sigma.
    """
    r = checked_ratio(r)
    steps = []
    for sigma, sigma_next in itertools.pairwise(levels):
        if sigma_next == 0:
            parts = first_order(dx_dsigma, sigma, sigma_next)
        else:
            mu, h, last = sigma ** (1 - r) * sigma_next**r, sigma_next - sigma, 1 / (2 * r)
            weights = (last, 1 - last) if r != 0.5 else ()
            parts = [loop.slope(h=mu - sigma, **dx_dsigma(sigma)), loop.slope(h=h, weights=weights, **dx_dsigma(mu))]
        steps.append(loop.step(*parts))
    return loop.Solver(levels, steps)


SOLVERS = {"euler": euler, "heun": heun, "dpm2": dpm2}
