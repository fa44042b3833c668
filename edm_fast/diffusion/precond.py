"""Preconditioning: the coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

Karras et al. 2022, Eq. 7 and Table 1. sigma is a tensor; results have its shape and dtype, or are the number 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from edm_fast.diffusion._processes import iddpm_table, vp_sigma, vp_t

__all__ = ["Coefficients", "edm", "iddpm", "iddpm_index", "iddpm_table", "ve", "vp", "vp_sigma", "vp_t"]


class Coefficients(NamedTuple):
    c_skip: torch.Tensor | float
    c_out: torch.Tensor
    c_in: torch.Tensor | float
    c_noise: torch.Tensor


def vp(sigma: torch.Tensor, beta_d: float, beta_min: float, M: int) -> Coefficients:
    """c_noise = (M - 1) t(sigma)."""
    return Coefficients(1, -sigma, 1 / (sigma**2 + 1).sqrt(), (M - 1) * vp_t(sigma, beta_d, beta_min))


def ve(sigma: torch.Tensor) -> Coefficients:
    """c_noise = ln(sigma / 2)."""
    return Coefficients(1, sigma, 1, (0.5 * sigma).log())


def iddpm(sigma: torch.Tensor, index: torch.Tensor, M: int) -> Coefficients:
    """c_noise = M - 1 - index, where `index` (shape of sigma) is the nearest entry of the table u."""
    return Coefficients(1, -sigma, 1 / (sigma**2 + 1).sqrt(), M - 1 - index)


def iddpm_index(sigma: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """argmin_j |sigma - u_j| in float32, the first one on ties; int64 in the shape of sigma."""
    distances = (sigma.to(torch.float32).reshape(-1, 1) - u.to(sigma.device)).abs()  # (numel, M+1)
    return distances.argmin(dim=1).reshape(sigma.shape)


def edm(sigma: torch.Tensor, sigma_data: float) -> Coefficients:
    """c_noise = ln(sigma) / 4."""
    variance = sigma**2 + sigma_data**2
    return Coefficients(
        sigma_data**2 / variance, sigma * sigma_data / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4
    )
