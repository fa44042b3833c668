"""What stochastic solvers share: the ancestral split, and noise in a stage."""

from __future__ import annotations

import math
from typing import Any

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments


def noise(c: float, draw: int = 0) -> dict[str, Any]:
    """What a stage that adds c eps has besides. Without noise it has no such coefficient."""
    return {"c": c, "draw": draw} if c != 0 else {}


def checked_amount(name: str, value: Any) -> float:
    found = _arguments.number(name, value)
    if not 0 <= found < math.inf:
        raise UserError(f"{name} is {value}; expected a number of at least 0")
    return found


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(v, u), v^2 + u^2 = sigma'^2: the level to step down to, and the noise to add there; u = 0 for eta = 0.

    u = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma): the posterior's of DDPM for eta = 1. Song et al. 2021
    (DDIM), Eq. 16.
    """
    u = min(sigma_next, eta * sigma_next * math.sqrt((sigma - sigma_next) * (sigma + sigma_next)) / sigma)
    return math.sqrt((sigma_next - u) * (sigma_next + u)), u
