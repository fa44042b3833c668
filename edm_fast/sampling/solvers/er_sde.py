"""ER-SDE-Solver (Cui et al. 2023, 2309.06169), variance-exploding form: reverse SDEs with a noise scale phi."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling.solvers._multistep import checked_order, integrals
from edm_fast.sampling.solvers._noise import checked_amount, noise


def er_sde(
    levels: Sequence[float],
    *,
    order: int = 3,
    phi: float | None = None,
    quadrature_points: int | None = None,
    clip: float = 0,
) -> loop.Solver:
    """x' = r x + (1 - r) D + (sigma' - sigma + phi(sigma') S0) D' + ((sigma' - sigma)^2 / 2 + phi(sigma') S1) D''
    + sqrt(sigma'^2 - sigma^2 r^2) eps.

    r = phi(sigma')/phi(sigma); S0 and S1 are the integrals of 1/phi(u) and (u - sigma)/phi(u) from sigma' to sigma;
    D' and D'' are difference quotients of the last two and three D over their levels.
    order: 1, or 2 and 3 from the second and third step on. The variance of 2 and 3 is of second order.
    phi: None is x (e^{x^0.3} + 10), the paper's; a number p is x^p: 1 is the ODE, 2 the usual reverse SDE.
    quadrature_points: S0 and S1 are sums over as many points, 100 in the published code; None: exact.
    clip: a variance of eps below it is 0, 1e-6 in the published code. A step to 0 is x = D. One draw a step.
    """
    order, clip, growth = checked_order(order, 3), checked_amount("clip", clip), _growth(phi)
    if quadrature_points is not None:
        quadrature_points = _arguments.steps(quadrature_points, "quadrature_points")
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        n = min(order, i + 1)
        if sigma_next == 0:
            steps.append(loop.step(loop.data(sigma, a=0.0), draws=1))
            continue
        ratio = float(growth(sigma_next) / growth(sigma))
        variance = sigma_next**2 * (1 - ratio**2)
        r = sigma_next / sigma * ratio
        weights = np.zeros(n)  # of D_i, D_{i-1}, D_{i-2}
        weights[0] = 1 - r
        if n > 1:
            S0, S1 = _integrals(growth, sigma, sigma_next, quadrature_points)
            scale = sigma_next * growth(sigma_next)
            first = np.zeros(n)  # D' in terms of them
            first[:2] = np.array([1, -1]) / (sigma - levels[i - 1])
            weights += (sigma_next - sigma + scale * S0) * first
        if n > 2:
            before = np.array([0, 1, -1]) / (levels[i - 1] - levels[i - 2])
            second = 2 * (first - before) / (sigma - levels[i - 2])
            weights += ((sigma_next - sigma) ** 2 / 2 + scale * S1) * second
        added = noise(math.sqrt(variance)) if variance > clip else {}
        steps.append(loop.step(loop.data(sigma, weights.tolist(), a=r, **added), draws=1))
    return loop.Solver(levels, steps)


def _growth(phi: float | None) -> Callable[..., np.ndarray]:
    """phi(x)/x, which does not fall: the noise added has a variance of at least 0."""
    if phi is None:
        return lambda x: np.exp(np.power(x, 0.3)) + 10
    power = _arguments.number("phi", phi)
    if not 1 <= power < math.inf:
        raise UserError(f"phi is {phi}; expected None or a power of at least 1")
    return lambda x: np.power(x, power - 1)


def _integrals(
    growth: Callable[..., np.ndarray], sigma: float, sigma_next: float, points: int | None
) -> tuple[float, float]:
    """S0 and S1; exact ones with v = ln u, du/phi(u) = dv/growth(u)."""
    if points is not None:
        du = (sigma - sigma_next) / points
        u = sigma_next + np.arange(points) * du
        return float(np.sum(du / (u * growth(u)))), float(np.sum(du * (u - sigma) / (u * growth(u))))
    ends, one = (math.log(sigma_next), math.log(sigma)), np.zeros(1)
    [S0] = integrals(one, *ends, lambda v: 1 / growth(np.exp(v)), pieces=4)
    [S1] = integrals(one, *ends, lambda v: (np.exp(v) - sigma) / growth(np.exp(v)), pieces=4)
    return S0, S1


SOLVERS = {"er_sde": er_sde}
