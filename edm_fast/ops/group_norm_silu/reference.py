"""The definition of group_norm_silu: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.ops import _check
from edm_fast.ops._cases import LAYOUTS, Call, Case, Make


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


def _norm(shape: tuple[int, ...], groups: int, layout: str = "contiguous", adaptive: bool = False, **kwargs: Any):
    def build(make: Make) -> Call:
        n, c = shape[:2]
        rest = {"scale": make(n, c), "shift": make(n, c), **kwargs} if adaptive else kwargs
        return (make(*shape, layout=layout), make(c), make(c), groups), rest

    return build


def cases() -> Iterator[Case]:
    for channels, size in ((256, 32), (512, 16), (256, 8)):
        yield Case(f"cifar10_{channels}_{size}", _norm((8, channels, size, size), 32, eps=1e-6), "real")
    yield Case("adm_384_16", _norm((2, 384, 16, 16), 32, adaptive=True), "real")
    for layout in LAYOUTS:
        yield Case(f"odd_{layout}", _norm((3, 12, 5, 7), 4, layout))
        yield Case(f"adaptive_{layout}", _norm((3, 12, 5, 7), 4, layout, adaptive=True, silu=False))
    yield Case("one_pixel", _norm((2, 8, 1, 1), 2))
    yield Case("no_space", _norm((4, 8), 4))
    yield Case("batch_0", _norm((0, 8, 4, 4), 2))
    yield Case("small", _norm((2, 32, 8, 8), 8), "small")
    for c, size in ((128, 32), (256, 32), (256, 16), (512, 16), (256, 8)):
        yield Case(f"64x{c}x{size}x{size}", _norm((64, c, size, size), 32, "channels_last", eps=1e-6), "large")
