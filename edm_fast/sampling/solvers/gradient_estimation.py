"""Gradient estimation: Euler along an extrapolated slope."""

from __future__ import annotations

from collections.abc import Sequence

from edm_fast.sampling import _arguments, loop


def gradient_estimation(levels: Sequence[float], *, gamma: float = 2) -> loop.Solver:
    """x' = x + (sigma' - sigma) (gamma d_i + (1 - gamma) d_{i-1}); the first step and one to 0 are Euler's.

    Permenter & Yuan 2024, Alg. 2. gamma = 1 is Euler; gamma = 3/2 is iPNDM of order 2.
    """
    gamma = _arguments.number("gamma", gamma)
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        weights = [gamma, 1 - gamma] if i > 0 and sigma_next > 0 else []
        steps.append(loop.step(loop.slope(sigma, weights, t=sigma, h=sigma_next - sigma)))
    return loop.Solver(levels, steps)


SOLVERS = {"gradient_estimation": gradient_estimation}
