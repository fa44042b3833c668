"""The definition of upfirdn: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.ops import _check


class UpfirdnArgs(NamedTuple):
    x: torch.Tensor
    f: torch.Tensor
    up: int = 1
    down: int = 1
    padding: int = 0

    def size(self) -> list[int]:
        """Height and width of the result."""
        return [output_size(n, self.f.shape[0], self.up, self.down, self.padding) for n in self.x.shape[2:]]


def output_size(size: int, taps: int, up: int, down: int, padding: int) -> int:
    """Output length along one axis."""
    return (size - 1) * up + taps - 2 * padding if up > 1 else (size + 2 * padding - taps) // down + 1


def reference(args: UpfirdnArgs) -> torch.Tensor:
    x, f, up, down, padding = args
    channels, f = x.shape[1], f.to(x.dtype)
    weight = (f if up == 1 else f * float(up**2))[None, None].tile([channels, 1, 1, 1])  # (C, 1, K, K)
    if up > 1:
        return F.conv_transpose2d(x, weight, None, up, padding, 0, channels)
    return F.conv2d(x, weight, None, down, padding, 1, channels)


def check(args: UpfirdnArgs) -> None:
    x, f, up, down, padding = args
    _check.floating("upfirdn", "x", x, 4)
    _check.floating("upfirdn", "f", f, 2)
    if f.shape[0] != f.shape[1]:
        raise UserError(f"upfirdn: f has shape {tuple(f.shape)}; expected a square filter")
    if up < 1 or down < 1 or (up > 1 and down > 1) or padding < 0:
        raise UserError(f"upfirdn: up={up}, down={down}, padding={padding}; expected one factor >= 1 and the other 1")
    if min(*args.size(), *x.shape[2:]) < 1:
        raise UserError(f"upfirdn: images of {tuple(x.shape[2:])} are too small for a filter of {f.shape[0]} taps")


def like(args: UpfirdnArgs) -> torch.Tensor:
    x = args.x
    return torch.empty((*x.shape[:2], *args.size()), dtype=x.dtype, device=x.device)
