"""DPM-Solver++ for the reverse SDE, as in k-diffusion; SDE-DPM-Solver++: Lu et al. 2022 (2211.01095).

eta = 0 is an ODE solver, eta = 1 the usual SDE; s_noise multiplies the noise. A step to 0 is x = D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._multistep import checked_choice, checked_lowering, checked_order, phi_weights, points
from edm_fast.sampling.solvers._noise import ancestral, checked_amount, noise
from edm_fast.sampling.solvers._runge_kutta import checked_ratio


def dpmpp_sde(levels: Sequence[float], *, r: float = 0.5, eta: float = 1, s_noise: float = 1) -> loop.Solver:
    """Two ancestral steps from x, sigma -> mu = sigma^{1-r} sigma'^r and sigma -> sigma', each with its own draw.

    y = (v1/sigma) x + (1 - v1/sigma) D + u1 eps1,
    x' = (v2/sigma) x + (1 - v2/sigma) ((1 - f) D + f D(y; mu)) + u2 eps2, f = 1/(2r). The variance is of first order.
    """
    eta, s_noise, r = checked_amount("eta", eta), checked_amount("s_noise", s_noise), checked_ratio(r)
    f = 1 / (2 * r)
    steps = []
    for sigma, sigma_next in zip(levels, levels[1:]):
        if sigma_next == 0:
            steps.append(loop.step(loop.data(sigma, a=0.0)))
            break
        mu = sigma ** (1 - r) * sigma_next**r
        (v1, u1), (v2, u2) = ancestral(sigma, mu, eta), ancestral(sigma, sigma_next, eta)
        a, b = v1 / sigma, v2 / sigma
        weights = [f * (1 - b), (1 - f) * (1 - b)] if f != 1 else [1 - b]
        inner = loop.data(sigma, [1 - a], a=a, **noise(s_noise * u1, 0))
        steps.append(loop.step(inner, loop.data(mu, weights, a=b, **noise(s_noise * u2, 1)), draws=2))
    return loop.Solver(levels, steps)


def dpmpp_2m_sde(
    levels: Sequence[float],
    *,
    order: int = 2,
    eta: float = 1,
    s_noise: float = 1,
    solver_type: str = "midpoint",
    lower_order_final: bool | str = False,
) -> loop.Solver:
    """x' = (sigma'/sigma) e^{-eta h} x - P1 D_i + a term in D_i - D_{i-1} + sigma' sqrt(1 - e^{-2 eta h}) eps.

    P1 = e^{-(1 + eta) h} - 1, h = lambda' - lambda; solver_type is "midpoint" or "heun", lower_order_final as in
    `dpmpp`. One draw a step, none for eta = 0 and in a step to 0. The variance is of second order.
    """
    checked_choice("solver_type", solver_type, ("midpoint", "heun"))
    return _multistep(levels, checked_order(order, 2), eta, s_noise, solver_type, lower_order_final)


def dpmpp_3m_sde(levels: Sequence[float], *, eta: float = 1, s_noise: float = 1) -> loop.Solver:
    """Three points, weighted as in `dpmpp` of order 3 with (1 + eta) h for h. The variance is of second order."""
    return _multistep(levels, 3, eta, s_noise, "heun", False)


def _multistep(
    levels: Sequence[float], order: int, eta: float, s_noise: float, solver_type: str, lower_order_final: bool | str
) -> loop.Solver:
    eta, s_noise = checked_amount("eta", eta), checked_amount("s_noise", s_noise)
    lower_order_final = checked_lowering(lower_order_final)
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        n = 1 if sigma_next == 0 else points(order, i, len(levels) - 1, lower_order_final)
        h = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        r = [math.log(levels[i - k - 1] / levels[i - k]) / h for k in range(n - 1)]
        weights = phi_weights(-(1 + eta) * h, r, solver_type)
        decay = (sigma_next / sigma) ** eta  # e^{-eta h}
        added = noise(s_noise * sigma_next * math.sqrt(1 - decay**2))
        part = loop.data(sigma, weights, a=sigma_next / sigma * decay, **added)
        steps.append(loop.step(part, draws=int(eta > 0 and sigma_next > 0)))
    return loop.Solver(levels, steps)


SOLVERS = {"dpmpp_sde": dpmpp_sde, "dpmpp_2m_sde": dpmpp_2m_sde, "dpmpp_3m_sde": dpmpp_3m_sde}
