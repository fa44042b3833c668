"""The definition of pixel_norm: its record of arguments, what it refuses, the formula in plain torch, and its cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.ops import _check
from edm_fast.ops._cases import LAYOUTS, Call, Case, Make


class PixelNormArgs(NamedTuple):
    x: torch.Tensor
    gain: torch.Tensor | None = None
    norm: bool = True
    silu: bool = False
    groups: int = 1
    interleaved: int = 1
    eps: float = 1e-4


def reference(args: PixelNormArgs) -> torch.Tensor:
    x, gain, norm, silu, groups, interleaved, eps = args
    y = x
    if norm:
        whole = groups == interleaved == 1
        parts = x if whole else x.reshape(len(x), groups, -1, interleaved, *x.shape[2:])
        dim = 1 if whole else 2
        size = torch.linalg.vector_norm(parts, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        y = (parts / (eps + size * math.sqrt(1 / parts.shape[dim])).to(x.dtype)).reshape(x.shape)
    if gain is not None:
        y = y * gain[:, :, None, None].to(y.dtype)
    return F.silu(y) if silu else y


def check(args: PixelNormArgs) -> None:
    op, (x, gain, _, _, groups, interleaved, _) = "pixel_norm", args
    _check.floating(op, "x", x, 4)
    if groups < 1 or interleaved < 1 or x.shape[1] == 0 or x.shape[1] % (groups * interleaved):
        raise UserError(f"{op}: {x.shape[1]} channels do not divide into {groups} groups of {interleaved} each")
    if gain is not None and tuple(gain.shape) not in {(x.shape[0], x.shape[1]), (1, x.shape[1])}:
        raise UserError(f"{op}: gain has shape {tuple(gain.shape)}; expected {tuple(x.shape[:2])}")


def like(args: PixelNormArgs) -> torch.Tensor:
    return torch.empty_like(args.x, memory_format=torch.channels_last)


def _pixels(
    shape: tuple[int, ...], rows: int = 0, layout: str = "contiguous", scale: float = 1.0, **kwargs: Any
) -> Callable:
    def build(make: Make) -> Call:
        rest = {"gain": make(rows, shape[1]), **kwargs} if rows else kwargs
        return (make(*shape, layout=layout, scale=scale),), rest

    return build


def cases() -> Iterator[Case]:
    last = "channels_last"
    for channels, size in ((192, 64), (384, 32), (576, 16), (768, 8)):
        shape = (2, channels, size, size)
        yield Case(f"edm2_{channels}_{size}", _pixels(shape, layout=last), "real")
        yield Case(f"edm2_{channels}_{size}_gain", _pixels(shape, 2, last, norm=False, silu=True), "real")
        large = _pixels((64, channels, size, size), 64, last, silu=True)
        yield Case(f"64x{channels}x{size}x{size}", large, "large")
    yield Case("edm2_qkv_16", _pixels((2, 3 * 576, 16, 16), layout=last, groups=9, interleaved=3), "real")
    for layout in LAYOUTS:
        yield Case(f"all_{layout}", _pixels((3, 35, 5, 7), 3, layout, silu=True))
        yield Case(f"one_gain_{layout}", _pixels((3, 70, 5, 7), 1, layout))
        yield Case(f"silu_{layout}", _pixels((3, 33, 3, 7), layout=layout, norm=False, silu=True))
        yield Case(f"heads_{layout}", _pixels((2, 102, 3, 5), 2, layout, groups=2, interleaved=3))
        yield Case(f"groups_{layout}", _pixels((2, 102, 3, 5), layout=layout, groups=6, silu=True))
    yield Case("large_values", _pixels((2, 16, 4, 4), scale=1e13, silu=True))
    yield Case("small_values", _pixels((2, 16, 4, 4), 1, scale=1e-5))
    yield Case("pixels_of_zeros", _pixels((2, 16, 4, 4), 1, scale=0.0, silu=True))
    yield Case("one_channel", _pixels((2, 1, 4, 5)))
    yield Case("one_pixel", _pixels((2, 48, 1, 1), 2, silu=True))
    yield Case("batch_0", _pixels((0, 4, 3, 3), 1))
    yield Case("small", _pixels((2, 32, 8, 8), 2, silu=True), "small")
