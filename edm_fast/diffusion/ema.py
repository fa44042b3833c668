"""Power function averages of weights, and averages of any width from stored ones. Karras et al. 2024, Section 3.

The average at time t (images seen) has the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), tau <= t. Its width
`std` is the relative deviation sigma_rel, from 0 to 0.2886 (gamma = 0, the mean of all weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edm_fast.errors import UserError

Floats = NDArray[np.float64]
Numbers = Sequence[float] | Floats
WIDEST = 1 / math.sqrt(12)  # gamma = 0


def std_of_gamma(gamma: float) -> float:
    """sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)). Eq. 123."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def gamma_of_std(std: float) -> float:
    """The largest real root of gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s, s = std^-2. Eq. 126, Alg. 2."""
    if not 0 < std <= WIDEST * (1 + 1e-9):
        raise UserError(f"the width of an average is {std}; expected a number above 0 and up to {WIDEST:.4f}")
    s = std**-2.0
    return max(float(np.roots([1, 7, 16 - s, 12 - s]).real.max()), 0.0)


def power_beta(std: float, t: float, images: float) -> float:
    """beta of the step of `images` that ends at t: average <- beta average + (1 - beta) weights. Eq. 127."""
    return float((1 - images / t) ** (gamma_of_std(std) + 1))


def half_life_beta(t: float, images: float, half_life: float, rampup_ratio: float | None) -> float:
    """The same of an average with a half-life, in images, that is at most rampup_ratio t."""
    half_life = half_life if rampup_ratio is None else min(half_life, rampup_ratio * t)
    return float(0.5 ** (images / max(half_life, 1e-8)))


def power_response(t: float, std: float, length: int) -> Floats:
    """The profile at t as weights of the times 0 to length - 1, sum 1."""
    times = np.arange(length, dtype=np.float64)
    weights = np.where(times <= t, (times / t) ** gamma_of_std(std), 0)
    return weights / weights.sum()


def power_products(t_a: Numbers, std_a: Numbers, t_b: Numbers, std_b: Numbers) -> Floats:
    """The inner products (a, b) of profiles. Eq. 151."""
    ta, tb = (np.asarray(t, dtype=np.float64) for t in (t_a, t_b))
    ga, gb = (np.array([gamma_of_std(float(std)) for std in stds], dtype=np.float64) for stds in (std_a, std_b))
    ta, ga = ta[:, None], ga[:, None]
    low, high = np.minimum(ta, tb), np.maximum(ta, tb)
    later = np.where(ta < tb, gb, ga)
    return (ga + 1) * (gb + 1) * (low / high) ** later / ((ga + gb + 1) * high)


def reconstruction(t_in: Numbers, std_in: Numbers, t: Numbers, std: Numbers) -> Floats:
    """Coefficients (inputs, outputs) by which stored averages sum up to the wanted ones, columns of sum 1. Alg. 3.

    They minimise the distance of the combined profile from the wanted one (least squares).
    """
    c = np.linalg.solve(power_products(t_in, std_in, t_in, std_in), power_products(t_in, std_in, t, std))
    return np.asarray(c / c.sum(axis=0), dtype=np.float64)


def reconstruction_error(t_in: Numbers, std_in: Numbers, t: Numbers, std: Numbers, c: Floats) -> Floats:
    """|sum c_i p_i - p| / |p| of each output: how far the combined profile is from the wanted one, 0 if they agree."""
    a, b = power_products(t_in, std_in, t_in, std_in), power_products(t_in, std_in, t, std)
    wanted = np.diag(power_products(t, std, t, std))
    squares = wanted - 2 * (c * b).sum(axis=0) + (c * (a @ c)).sum(axis=0)
    return np.asarray(np.sqrt(np.maximum(squares, 0) / wanted), dtype=np.float64)
