"""group_norm_silu: group normalisation, optional per-image scale and shift, optional SiLU."""

from __future__ import annotations

import torch

from edm_fast.backend import Op
from edm_fast.ops.group_norm_silu.cpu import cpu
from edm_fast.ops.group_norm_silu.cuda import cuda
from edm_fast.ops.group_norm_silu.reference import GroupNormSiluArgs, cases, check, like, reference
from edm_fast.ops.group_norm_silu.triton import triton

_op = Op("group_norm_silu", GroupNormSiluArgs, reference, check, triton, cuda, cpu, like=like, cases=cases)


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-5,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    silu: bool = True,
) -> torch.Tensor:
    """Normalise x (N, C, *spatial) in `groups` groups of channels; scale and shift after it; then SiLU.

        n = (x - mean_g) / sqrt(var_g + eps) * weight + bias          biased variance of each group, float32 statistics
        m = shift + n (scale + 1)                                      if scale and shift are given
        y = m sigmoid(m)                                               if silu

    weight, bias: (C,); scale, shift: (N, C) or (1, C). Bad shapes raise UserError.
    Source: Wu & He 2018 (group norm); Dhariwal & Nichol 2021 (adaptive scale and shift).
    """
    return _op(GroupNormSiluArgs(x, weight, bias, groups, eps, scale, shift, silu))
