"""What a sampler may be given: denoisers of any origin, latents, noise, and numbers. Everything else is one line."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.networks._inputs import described

MAX_STEPS = 100_000
ROUNDING = 1e-9  # relative; a level that is an end of a range counts as one however it was computed
LEVELS = 1e-30, 1e18  # float32 holds their squares, as networks need


def check_network(net: Any) -> None:
    """A denoiser net(x, sigma, class_labels) that says which noise levels it knows."""
    missing = [name for name in ("sigma_min", "sigma_max", "round_sigma") if not hasattr(net, name)]
    if missing or not callable(net):
        inner = getattr(net, "module", None)  # DataParallel and its like
        hint = "; expected its .module" if inner is not None and hasattr(inner, "round_sigma") else ""
        raise UserError(
            f"net is of type {type(net).__name__}{', without ' * bool(missing)}{', '.join(missing)}{hint}; expected a "
            "denoiser net(x, sigma, class_labels) with sigma_min, sigma_max and round_sigma(sigma), as edm_fast.load "
            "returns"
        )


def check_latents(latents: Any) -> None:
    """Normal deviates of a floating type."""
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise UserError(f"latents is {described(latents)}; expected floating-point normal deviates (N, C, H, W)")


def checked_noise(eps: Any, x: Tensor) -> Tensor:
    """What randn_like(x) returned, in the type of x."""
    if not isinstance(eps, Tensor) or not eps.is_floating_point() or eps.shape != x.shape or eps.device != x.device:
        raise UserError(
            f"randn_like returned {described(eps)}; expected floating-point numbers {tuple(x.shape)} on {x.device}"
        )
    return eps.to(x.dtype)


def checked_state(changed: Any, x: Tensor) -> Tensor:
    """What a callback returned in place of x, in the type of x; x itself for None."""
    if changed is None:
        return x
    if not isinstance(changed, Tensor) or changed.shape != x.shape or changed.device != x.device:
        raise UserError(
            f"callback returned {described(changed)}; expected None or a state {tuple(x.shape)} on {x.device}"
        )
    return changed.to(x.dtype)


def number(name: str, value: Any) -> float:
    """A Python float of anything that is a number; NaN and infinity are left to the caller."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{name} is {str(value)[:80]!r}; expected a number") from None


def steps(num_steps: Any, name: str = "num_steps") -> int:
    """A whole number of at least 1, as an int; 18.0 is one."""
    value = number(name, num_steps)
    if isinstance(num_steps, bool) or not 1 <= value <= MAX_STEPS or value != int(value):
        raise UserError(f"{name} is {num_steps}; expected an integer from 1 to {MAX_STEPS:,}")
    return int(value)


def positive(name: str, value: Any) -> float:
    found = number(name, value)
    if not 0 < found < math.inf:
        raise UserError(f"{name} is {value}; expected a positive number")
    return found


def limits(net: Any, sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    """(lo, hi): the range asked for, cut to what the network supports."""
    own = number("net.sigma_min", net.sigma_min), number("net.sigma_max", net.sigma_max)
    lo, hi = max(number("sigma_min", sigma_min), own[0]), min(number("sigma_max", sigma_max), own[1])
    if not LEVELS[0] <= lo < hi <= LEVELS[1]:
        raise UserError(
            f"sigma_min {lo:g} and sigma_max {hi:g} (after cutting to the network's own range {own[0]:g} to "
            f"{own[1]:g}); expected 0 < sigma_min < sigma_max, both finite, within {LEVELS[0]:g} to {LEVELS[1]:g}"
        )
    return lo, hi


def churn(sigmas: Tensor, num_steps: int, S_churn: Any, S_min: Any, S_max: Any, S_noise: Any) -> tuple[Tensor, float]:
    """(gamma (N,), S_noise): gamma_i = min(S_churn / N, sqrt(2) - 1) where S_min <= sigma_i <= S_max, else 0.

    Karras et al. 2022, Alg. 2, line 4.
    """
    amount, low, high = number("S_churn", S_churn), number("S_min", S_min), number("S_max", S_max)
    if not amount >= 0:
        raise UserError(f"S_churn is {S_churn}; expected a number of at least 0")
    if not low <= high:
        raise UserError(f"S_min is {S_min} and S_max is {S_max}; expected S_min <= S_max")
    scale = number("S_noise", S_noise)
    if not math.isfinite(scale):
        raise UserError(f"S_noise is {S_noise}; expected a finite number")
    gamma = min(amount / num_steps, math.sqrt(2) - 1)
    return gamma * ((sigmas >= low) & (sigmas <= high)).to(torch.float64), scale
