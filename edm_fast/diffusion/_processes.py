"""The two noise processes whose formulas several files of this folder need: VP (Song et al. 2021) and iDDPM.

Karras et al. 2022, Table 1. Every function works in the dtype of its tensor argument.
"""

from __future__ import annotations

import math

import torch


def vp_sigma(t: torch.Tensor, beta_d: float, beta_min: float) -> torch.Tensor:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
    return ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt()


def vp_t(sigma: torch.Tensor, beta_d: float, beta_min: float) -> torch.Tensor:
    """The inverse of vp_sigma: t = (sqrt(beta_min^2 + 2 beta_d ln(1 + sigma^2)) - beta_min) / beta_d."""
    return ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d


def iddpm_table(C_1: float, C_2: float, M: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """u (M+1,), decreasing, u_M = 0: u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) - 1).

    abar_j = sin^2(pi/2 j / (M (C_2 + 1))) and the ratios are float32 whatever the dtype of u, as published.
    """
    j = torch.arange(M + 1, device="cpu")
    abar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2  # (M+1,) float32
    ratios = (abar[:-1] / abar[1:]).clip(min=C_1).to(dtype)  # (M,)
    u = torch.zeros(M + 1, dtype=dtype, device="cpu")
    for k in range(M, 0, -1):
        u[k - 1] = ((u[k] ** 2 + 1) / ratios[k - 1] - 1).sqrt()
    return u
