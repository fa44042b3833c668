"""group_norm_silu: group normalisation, optional per-image scale and shift, optional SiLU.

    n = (x - mean_g) / sqrt(var_g + eps) * weight + bias          biased variance over each group, float32 statistics
    m = shift + n (scale + 1)                                      if scale and shift are given
    y = m sigmoid(m)                                               if silu

x: (N, C, *spatial); weight, bias: (C,); scale, shift: (N, C) or (1, C).
Source: Wu & He 2018 (group norm); Dhariwal & Nichol 2021 (adaptive scale and shift).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edm_fast.backend import Op
from edm_fast.errors import UserError
from edm_fast.ops import _check


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-5,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    silu: bool = True,
) -> torch.Tensor:
    """Normalise x (N, C, *spatial) in `groups` groups of channels; scale and shift (N, C) after it; then SiLU."""
    y = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        per_image = (*scale.shape, *[1] * (x.ndim - 2))  # (N, C, 1, 1)
        y = torch.addcmul(shift.reshape(per_image), y, scale.reshape(per_image) + 1)
    return F.silu(y) if silu else y


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-5,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    silu: bool = True,
) -> None:
    op = "group_norm_silu"
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise UserError(f"{op}: x must be a floating-point tensor of shape (N, C, ...)")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise UserError(f"{op}: {channels} channels do not divide into {groups} groups")
    _check.shape(op, "weight", weight, (channels,))
    _check.shape(op, "bias", bias, (channels,))
    if (scale is None) != (shift is None):
        raise UserError(f"{op}: scale and shift go together")
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and tuple(value.shape) not in {(x.shape[0], channels), (1, channels)}:
            raise UserError(f"{op}: {name} has shape {tuple(value.shape)}; expected {(x.shape[0], channels)}")


group_norm_silu = Op("group_norm_silu", reference, check)
