"""The definition of group_norm_silu: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.ops import _check


class GroupNormSiluArgs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    groups: int
    eps: float = 1e-5
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    silu: bool = True

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.x, self.weight, self.bias, self.scale, self.shift) if t is not None]


def reference(args: GroupNormSiluArgs) -> torch.Tensor:
    x, weight, bias, groups, eps, scale, shift, silu = args
    y = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        scale, shift = (t.reshape(*t.shape, *[1] * (x.ndim - 2)) for t in (scale, shift))  # (N or 1, C, 1, 1)
        y = torch.addcmul(shift, y, scale + 1)
    return F.silu(y) if silu else y


def check(args: GroupNormSiluArgs) -> None:
    op = "group_norm_silu"
    x, weight, bias, groups, _, scale, shift, _ = args
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


def like(args: GroupNormSiluArgs) -> torch.Tensor:
    return torch.empty(args.x.shape, dtype=args.x.dtype, device=args.x.device)
