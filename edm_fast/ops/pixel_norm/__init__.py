"""pixel_norm: each pixel's channels to unit magnitude, a factor for each channel, SiLU; every part may be left out."""

from __future__ import annotations

import torch

from edm_fast.backend import Op
from edm_fast.ops.pixel_norm.cpu import cpu
from edm_fast.ops.pixel_norm.reference import PixelNormArgs, cases, check, like, reference
from edm_fast.ops.pixel_norm.triton import triton

_op = Op("pixel_norm", PixelNormArgs, reference, check, triton, cpu, like=like, cases=cases)


def pixel_norm(
    x: torch.Tensor,
    gain: torch.Tensor | None = None,
    *,
    norm: bool = True,
    silu: bool = False,
    groups: int = 1,
    interleaved: int = 1,
    eps: float = 1e-4,
) -> torch.Tensor:
    """Of x (N, C, H, W), gain (N or 1, C):

        n = x / (eps + RMS(x))          if norm; over the channels of a pixel, in float32 or wider
        m = n gain                      if gain is given
        y = m sigmoid(m)                if silu

    The norm is taken in `groups` groups of neighbouring channels, and in each of these over every `interleaved`-th one:
    with heads and 3, of q, k and v as `attention` takes them. Bad shapes raise UserError.
    Source: Karras et al. 2024 (arXiv 2312.02696), Eq. 30 (norm), Fig. 21 (gain and SiLU).
    """
    return _op(PixelNormArgs(x, gain, norm, silu, groups, interleaved, eps))
