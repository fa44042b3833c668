"""Ancestral solvers: a solver of the ODE down to v, then noise u eps back up to sigma'. A step to 0 is x = D.

v^2 + u^2 = sigma'^2, see `_noise.ancestral`: eta = 0 is the ODE solver, eta = 1 the usual amount of noise; s_noise
multiplies u. One draw a step, none in a step to 0. As in k-diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._noise import ancestral, checked_amount, noise
from edm_fast.sampling.solvers._runge_kutta import Parts, dx_dsigma


def euler_ancestral(levels: Sequence[float], *, eta: float = 1, s_noise: float = 1) -> loop.Solver:
    """x' = x + (v - sigma) d + u eps. The variance is of first order."""
    return _solver(levels, eta, s_noise, _euler)


def dpm2_ancestral(levels: Sequence[float], *, eta: float = 1, s_noise: float = 1) -> loop.Solver:
    """mu = sqrt(sigma v), y = x + (mu - sigma) d, x' = x + (v - sigma) d_y + u eps. The variance is of second order.

    DPM-Solver-2 with r = 1/2: Lu et al. 2022 (2206.00927), Alg. 1.
    """

    def parts(sigma: float, v: float, added: dict[str, Any]) -> Parts:
        mu = math.sqrt(sigma * v)
        return [loop.slope(h=mu - sigma, **dx_dsigma(sigma)), loop.slope(h=v - sigma, **dx_dsigma(mu), **added)]

    return _solver(levels, eta, s_noise, parts)


def dpmpp_2s_ancestral(levels: Sequence[float], *, eta: float = 1, s_noise: float = 1) -> loop.Solver:
    """mu = sqrt(sigma v), y = (mu/sigma) x + (1 - mu/sigma) D, x' = (v/sigma) x + (1 - v/sigma) D_y + u eps.

    DPM-Solver++(2S): Lu et al. 2022 (2211.01095), Alg. 1. The variance is of second order.
    """

    def parts(sigma: float, v: float, added: dict[str, Any]) -> Parts:
        mu = math.sqrt(sigma * v)
        a, b = mu / sigma, v / sigma
        return [loop.data(sigma, [1 - a], a=a), loop.data(mu, [1 - b], a=b, **added)]

    return _solver(levels, eta, s_noise, parts)


def _euler(sigma: float, v: float, added: dict[str, Any]) -> Parts:
    return [loop.slope(h=v - sigma, **dx_dsigma(sigma), **added)]


def _solver(
    levels: Sequence[float], eta: float, s_noise: float, parts: Callable[[float, float, dict[str, Any]], Parts]
) -> loop.Solver:
    eta, s_noise = checked_amount("eta", eta), checked_amount("s_noise", s_noise)
    steps = []
    for sigma, sigma_next in zip(levels, levels[1:]):
        v, u = ancestral(sigma, sigma_next, eta)
        step = (parts if v > 0 else _euler)(sigma, v, noise(s_noise * u))
        steps.append(loop.step(*step, draws=int(sigma_next > 0)))
    return loop.Solver(levels, steps)


SOLVERS = {
    "euler_ancestral": euler_ancestral,
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
}
