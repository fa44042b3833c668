"""Steps of one and two slopes along dx/dt = (p x - q D)/t, whatever the clock t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop

At = Callable[[float], dict[str, Any]]  # the coefficients of a slope at a time: sigma, and those of s, p, q, t not 1
Parts = list[tuple[loop.Stage, list[float]]]


def dx_dsigma(sigma: float) -> dict[str, Any]:
    """d = (x - D)/sigma: the clock is sigma itself."""
    return {"sigma": sigma, "t": sigma}


def checked_ratio(r: Any) -> float:
    """r of an inner evaluation at sigma^{1-r} sigma'^r."""
    found = _arguments.number("r", r)
    if not 0 < found <= 1:
        raise UserError(f"r is {r}; expected a number from 0 to 1, 0 excluded")
    return found


def heun_step(sigma: float, sigma_next: float) -> Parts:
    """Heun's along dx/dsigma; to level 0 it is Euler's, x = D. Karras et al. 2022, Alg. 1."""
    if sigma_next == 0:
        return first_order(dx_dsigma, sigma, sigma_next)
    return second_order(dx_dsigma, sigma, sigma_next, t_prime=sigma_next)


def first_order(at: At, t: float, t_next: float) -> Parts:
    """Euler: x + h d."""
    return [loop.slope(h=t_next - t, **at(t))]


def second_order(at: At, t: float, t_next: float, alpha: float = 1, t_prime: float | None = None) -> Parts:
    """Two slopes, the second at t' = t + alpha h with weights 1 - 1/(2 alpha) and 1/(2 alpha).

    alpha = 1: Heun, 1/2: midpoint, 2/3: Ralston. Karras et al. 2022, Alg. 3. `t_prime` replaces t + alpha h where the
    caller knows it without rounding.
    """
    h = t_next - t
    last = 1 / (2 * alpha)
    end = at(t + alpha * h if t_prime is None else t_prime)
    return [loop.slope(h=alpha * h, **at(t)), loop.slope(h=h, weights=(last, 1 - last), **end)]
