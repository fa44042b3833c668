"""upfirdn: resampling by an integer factor with a small filter, one copy of it per channel."""

from __future__ import annotations

import torch

from edm_fast.backend import Op
from edm_fast.ops.upfirdn.cpu import cpu
from edm_fast.ops.upfirdn.cuda import cuda
from edm_fast.ops.upfirdn.reference import UpfirdnArgs, cases, check, like, reference
from edm_fast.ops.upfirdn.triton import triton

_op = Op("upfirdn", UpfirdnArgs, reference, check, cuda, triton, cpu, like=like, cases=cases)


def upfirdn(x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1, padding: int = 0) -> torch.Tensor:
    """Resample x (N, C, H, W) by the filter f (K, K): `up` times larger, or `down` times smaller (one of them is 1).

        up > 1:    y[i] = up^2 sum_j x[j] f[i + padding - up j]        size (H-1) up + K - 2 padding
        otherwise: y[i] =      sum_k x[down i - padding + k] f[k]      size (H + 2 padding - K) // down + 1

    per axis, zeros outside; f is the outer product of the 1-D taps, sum 1. Bad shapes and factors raise UserError.
    Source: the resampling of DDPM++ and NCSN++ blocks (Song et al. 2021), as used by Karras et al. 2022.
    """
    return _op(UpfirdnArgs(x, f, up, down, padding))
