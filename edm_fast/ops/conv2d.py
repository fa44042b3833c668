"""conv2d: square convolution (cross-correlation) with zero padding and a fused tail.

    y = (weight * x + bias + emb + residual) scale          added in this order, each term optional

x: (N, C, H, W); weight: (O, C, k, k); bias: (O,); emb: (N, O) or (1, O), one value per channel; residual: as y.
Weight and bias are cast to the dtype of x.
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
    bias: torch.Tensor | None = None,
    emb: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
) -> torch.Tensor:
    """Convolve x (N, C, H, W) with weight (O, C, k, k); `padding` defaults to k // 2 (same size for odd k)."""
    y = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2 if padding is None else padding)
    if bias is not None:
        y = y.add_(bias.to(x.dtype).reshape(1, -1, 1, 1))
    if emb is not None:
        y = y.add_(emb[:, :, None, None])
    if residual is not None:
        y = y.add_(residual)
    return y if scale == 1.0 else y * scale


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    emb: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
) -> None:
    op = "conv2d"
    _check.floating(op, "x", x, 4)
    _check.floating(op, "weight", weight, 4)
    outputs, inputs, k, k2 = weight.shape
    if k != k2:
        raise UserError(f"{op}: weight has shape {tuple(weight.shape)}; expected a square kernel")
    if x.shape[1] != inputs:
        raise UserError(f"{op}: x has {x.shape[1]} channels; the weight expects {inputs}")
    pad = k // 2 if padding is None else padding
    height, width = (n + 2 * pad - k + 1 for n in x.shape[2:])
    if pad < 0 or min(height, width) < 1:
        raise UserError(f"{op}: images of {tuple(x.shape[2:])} are too small for kernel {k} with padding {pad}")
    _check.shape(op, "bias", bias, (outputs,))
    _check.shape(op, "residual", residual, (x.shape[0], outputs, height, width))
    if emb is not None and tuple(emb.shape) not in {(x.shape[0], outputs), (1, outputs)}:
        raise UserError(f"{op}: emb has shape {tuple(emb.shape)}; expected {(x.shape[0], outputs)}")


conv2d = Op("conv2d", reference, check)
