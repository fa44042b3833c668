"""Noise levels and time: the discretisations, schedules sigma(t) and scalings s(t) of Karras et al. 2022, Table 1.

Everything is float64 on the host: a grid is made once per run, and no step waits for a device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from edm_fast.diffusion._processes import iddpm_table, vp_t
from edm_fast.errors import UserError

DISCRETIZATIONS = ("vp", "ve", "iddpm", "edm")
SCHEDULES = ("vp", "ve", "linear")
SCALINGS = ("vp", "none")
Function = Callable[[Tensor], Tensor]
Function2 = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T", float, Tensor)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """sigma(t), its derivative as a function of t and sigma(t), and its inverse t(sigma)."""

    sigma: Function
    sigma_deriv: Function2
    sigma_inv: Function


@dataclasses.dataclass(frozen=True)
class Scaling:
    """s as a function of sigma(t), and its derivative in t as one of sigma and sigma'."""

    s: Function
    s_deriv: Function2


def vp_sigma(t: T, beta_d: float = 19.9, beta_min: float = 0.1) -> T:
    """sigma(t) = sqrt(e^(beta_d t^2 / 2 + beta_min t) - 1) of the VP process, of a number or a tensor.

    The published sampler raises e to a power, its preconditioner and loss call exp (`precond.vp_sigma`). The two round
    differently, and the difference of two nearly equal levels enters the samples as noise, so this one keeps the power.
    """
    return (math.e ** (0.5 * beta_d * t**2 + beta_min * t) - 1) ** 0.5


def default_limits(discretization: str, epsilon_s: float) -> tuple[float, float]:
    """(sigma_min, sigma_max) where the caller names none."""
    return {
        "vp": (vp_sigma(epsilon_s), vp_sigma(1.0)),
        "ve": (0.02, 100.0),
        "iddpm": (0.002, 81.0),
        "edm": (0.002, 80.0),
    }[discretization]


def vp_betas(sigma_min: float, sigma_max: float, epsilon_s: float) -> tuple[float, float]:
    """(beta_d, beta_min) for which VP's sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max."""
    low, high = math.log(sigma_min**2 + 1), math.log(sigma_max**2 + 1)
    beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
    return beta_d, high - 0.5 * beta_d


def edm_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """(hi^{1/rho} + i/(N-1) (lo^{1/rho} - hi^{1/rho}))^rho, i = 0..N-1 (N,). Karras et al. 2022, Eq. 5.

    UserError for a rho so small or large that double precision loses the ends of the range.
    """
    try:
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    except OverflowError:
        high = low = math.inf
    sigmas = (high + _spread(num_steps) * (low - high)) ** rho
    ends = sigmas.new_tensor([sigma_max, sigma_min])[:num_steps]
    if not torch.allclose(sigmas[[0, -1]][:num_steps], ends, rtol=1e-6, atol=0):
        raise UserError(
            f"rho is {rho:g}: noise levels from {sigma_max:g} to {sigma_min:g} cannot be computed with this exponent; "
            "expected a number such as 7, from about 0.5 to 1e9"
        )
    return sigmas


def vp_sigmas(num_steps: int, sigma_min: float, sigma_max: float, epsilon_s: float) -> Tensor:
    """sigma(1 + i/(N-1) (epsilon_s - 1)) with the betas of these limits (N,)."""
    t = 1 + _spread(num_steps) * (epsilon_s - 1)
    return vp_sigma(t, *vp_betas(sigma_min, sigma_max, epsilon_s))


def ve_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """sqrt(hi^2 (lo^2 / hi^2)^{i/(N-1)}) (N,)."""
    return (sigma_max**2 * (sigma_min**2 / sigma_max**2) ** _spread(num_steps)).sqrt()


def iddpm_sigmas(num_steps: int, sigma_min: float, sigma_max: float, C_1: float, C_2: float, M: int) -> Tensor:
    """Entries round((n-1)/(N-1) i) of the n entries of iDDPM's table that lie within the limits (N,)."""
    u = iddpm_table(C_1, C_2, M, dtype=torch.float64)
    u = u[(u >= sigma_min) & (u <= sigma_max)]  # (n,) decreasing
    if len(u) == 0:
        return u
    return u[((len(u) - 1) / max(num_steps - 1, 1) * _steps(num_steps)).round().to(torch.int64)]


def make_schedule(name: str, beta_d: float, beta_min: float) -> Schedule:
    """One of SCHEDULES; the betas matter to "vp" only."""
    if name == "vp":
        return Schedule(
            lambda t: vp_sigma(t, beta_d, beta_min),
            lambda t, sigma: 0.5 * (beta_min + beta_d * t) * (sigma + 1 / sigma),
            lambda sigma: vp_t(sigma, beta_d, beta_min),
        )
    if name == "ve":
        return Schedule(lambda t: t.sqrt(), lambda t, sigma: 0.5 / t.sqrt(), lambda sigma: sigma**2)
    return Schedule(lambda t: t, lambda t, sigma: torch.ones_like(t), lambda sigma: sigma)


def make_scaling(name: str) -> Scaling:
    """One of SCALINGS. "vp": s = 1 / sqrt(1 + sigma^2), s' = -sigma sigma' s^3."""
    if name == "vp":

        def s(sigma: Tensor) -> Tensor:
            return 1 / (1 + sigma**2).sqrt()

        return Scaling(s, lambda sigma, sigma_deriv: -sigma * sigma_deriv * s(sigma) ** 3)
    return Scaling(torch.ones_like, lambda sigma, sigma_deriv: torch.zeros_like(sigma))


def _steps(num_steps: int) -> Tensor:
    return torch.arange(num_steps, dtype=torch.float64, device="cpu")


def _spread(num_steps: int) -> Tensor:
    """i/(N-1), i = 0..N-1 (N,); a single step starts at 0."""
    return _steps(num_steps) / max(num_steps - 1, 1)
