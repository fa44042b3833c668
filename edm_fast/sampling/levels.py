"""Noise levels for `edm_fast.sample`: n of them from hi down to lo, (n,) float64 on the host.

In the formulas tau = j/(n-1), j = 0..n-1, and S(t) is sigma of the VP process, S(eps) = lo, S(1) = hi, eps = 1e-3.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from edm_fast.diffusion import schedule
from edm_fast.sampling._optimised import optimised_levels

EPSILON = 1e-3  # where the VP process starts


def karras(n: int, lo: float, hi: float, rho: float = 7) -> Tensor:
    """(hi^{1/rho} + tau (lo^{1/rho} - hi^{1/rho}))^rho. Karras et al. 2022, Eq. 5."""
    return schedule.edm_sigmas(n, lo, hi, rho)


def logsnr(n: int, lo: float, hi: float) -> Tensor:
    """exp(ln hi + tau (ln lo - ln hi)). Lu et al. 2022 (DPM-Solver)."""
    return polyexponential(n, lo, hi)


def polyexponential(n: int, lo: float, hi: float, rho: float = 1) -> Tensor:
    """lo (hi/lo)^{(1 - tau)^rho}, as in k-diffusion."""
    return ((1 - _spread(n)) ** rho * math.log(hi / lo)).exp() * lo


def time_uniform(n: int, lo: float, hi: float, rho: float = 2) -> Tensor:
    """S((1 + tau (eps^{1/rho} - 1))^rho): rho = 1 is uniform in time, 2 the grid of DEIS (Zhang & Chen 2022)."""
    return vp_clock(lo, hi).sigma((1 + _spread(n) * (EPSILON ** (1 / rho) - 1)) ** rho)


def vp(n: int, lo: float, hi: float) -> Tensor:
    """sigma(t) with beta_d = 19.9, beta_min = 0.1, uniform in t between the times of hi and lo. Song et al. 2021."""
    clock = schedule.make_schedule("vp", 19.9, 0.1)
    start, end = clock.sigma_inv(torch.tensor([hi, lo], dtype=torch.float64, device="cpu"))
    return clock.sigma(start + _spread(n) * (end - start))


def optimised(n: int, lo: float, hi: float) -> Tensor:
    """The least bound on the error, `edm_fast.sampling.optimised_levels` with its defaults. Xue et al. 2024."""
    found = optimised_levels(n - 1, lo, hi) if n > 1 else [hi]
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def vp_clock(lo: float, hi: float) -> schedule.Schedule:
    """S(t), its derivative and inverse."""
    return schedule.make_schedule("vp", *schedule.vp_betas(lo, hi, EPSILON))


LEVELS: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "logsnr": logsnr,
    "exponential": logsnr,
    "polyexponential": polyexponential,
    "time_uniform": time_uniform,
    "vp": vp,
    "optimised": optimised,
}


def has_rho(name: str) -> bool:
    """Whether the shape of these levels depends on rho."""
    return "rho" in inspect.signature(LEVELS[name]).parameters


def _spread(n: int) -> Tensor:
    """tau (n,); a single level is hi."""
    return torch.arange(n, dtype=torch.float64, device="cpu") / max(n - 1, 1)
