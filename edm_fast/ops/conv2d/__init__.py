"""conv2d: square convolution (cross-correlation) with zero padding and a fused tail."""

from __future__ import annotations

import torch

from edm_fast.backend import Op
from edm_fast.ops.conv2d.cpu import cpu
from edm_fast.ops.conv2d.cuda import cuda
from edm_fast.ops.conv2d.reference import Conv2dArgs, cases, check, fresh, reference
from edm_fast.ops.conv2d.triton import triton

_op = Op("conv2d", Conv2dArgs, reference, check, triton, cpu, cuda, like=fresh, cases=cases)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    emb: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
    clip: float | None = None,
) -> torch.Tensor:
    """Convolve x (N, C, H, W) with weight (O, C, k, k); `padding` defaults to k // 2 (same size for odd k).

        y = (weight * x + bias + emb + residual) scale          added in this order, each term optional; then within
                                                                +-clip, if that is given
    bias: (O,); emb: (N, O) or (1, O), one value per channel; residual: as y. Weight and bias are cast to the dtype of
    x. Bad shapes raise UserError. Source: the convolutions of the residual block, Karras et al. 2022, Appendix F.
    """
    return _op(Conv2dArgs(x, weight, bias, emb, residual, scale, padding, clip))
