"""upfirdn: resampling by an integer factor with a small filter, one copy of it per channel.

    up > 1:    y[i] = up^2 sum_j x[j] f[i + padding - up j]        size (H-1) up + K - 2 padding
    otherwise: y[i] =      sum_k x[down i - padding + k] f[k]      size (H + 2 padding - K) // down + 1

per axis, zeros outside. x: (N, C, H, W); f: (K, K), the outer product of the 1-D taps, sum 1.
Source: the resampling of DDPM++ / NCSN++ blocks (Song et al. 2021), as used by Karras et al. 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edm_fast.backend import Op
from edm_fast.errors import UserError
from edm_fast.ops import _check


def reference(x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1, padding: int = 0) -> torch.Tensor:
    """Resample x (N, C, H, W) by the filter f (K, K): `up` times larger, or `down` times smaller (one of them is 1)."""
    channels = x.shape[1]
    f = f.to(x.dtype)[None, None]
    if up > 1:
        weight = (f * up**2).tile([channels, 1, 1, 1])  # (C, 1, K, K)
        return F.conv_transpose2d(x, weight, groups=channels, stride=up, padding=padding)
    return F.conv2d(x, f.tile([channels, 1, 1, 1]), groups=channels, stride=down, padding=padding)


def check(x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1, padding: int = 0) -> None:
    _check.floating("upfirdn", "x", x, 4)
    _check.floating("upfirdn", "f", f, 2)
    if f.shape[0] != f.shape[1]:
        raise UserError(f"upfirdn: f has shape {tuple(f.shape)}; expected a square filter")
    if up < 1 or down < 1 or (up > 1 and down > 1) or padding < 0:
        raise UserError(f"upfirdn: up={up}, down={down}, padding={padding}; expected one factor >= 1 and the other 1")
    if min(output_size(n, f.shape[0], up, down, padding) for n in x.shape[2:]) < 1:
        raise UserError(f"upfirdn: images of {tuple(x.shape[2:])} are too small for a filter of {f.shape[0]} taps")


def output_size(size: int, taps: int, up: int, down: int, padding: int) -> int:
    """Output length along one axis."""
    return (size - 1) * up + taps - 2 * padding if up > 1 else (size + 2 * padding - taps) // down + 1


upfirdn = Op("upfirdn", reference, check)
