"""The definition of conv2d: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.backend import transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check


class Conv2dArgs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    emb: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    scale: float = 1.0
    padding: int | None = None

    def pad(self) -> int:
        """The rows and columns of zeros on each side of the image."""
        return self.weight.shape[-1] // 2 if self.padding is None else self.padding

    def size(self) -> list[int]:
        """Height and width of the result."""
        more = 2 * self.pad() - self.weight.shape[-1] + 1
        return [n + more for n in self.x.shape[2:]]


def _plus(y: torch.Tensor, term: torch.Tensor, in_place: bool) -> torch.Tensor:
    """y + term in the dtype of y."""
    return y.add_(term) if in_place else (y + term).to(y.dtype)


def reference(args: Conv2dArgs) -> torch.Tensor:
    x, weight, bias, emb, residual, scale, _ = args
    y = F.conv2d(x, weight.to(x.dtype), padding=args.pad())
    in_place = not transformed()  # torch.func and forward mode forbid it
    if bias is not None:
        y = _plus(y, bias.to(x.dtype).reshape(1, -1, 1, 1), in_place)
    if emb is not None:
        y = _plus(y, emb[:, :, None, None], in_place)
    if residual is not None:
        y = _plus(y, residual, in_place)
    return y if scale == 1.0 else y * scale


def check(args: Conv2dArgs) -> None:
    op = "conv2d"
    x, weight, bias, emb, residual, *_ = args
    _check.floating(op, "x", x, 4)
    _check.floating(op, "weight", weight, 4)
    outputs, inputs, k, k2 = weight.shape
    if k != k2 or weight.numel() == 0:
        raise UserError(f"{op}: weight has shape {tuple(weight.shape)}; expected square kernels of one channel or more")
    if x.shape[1] != inputs:
        raise UserError(f"{op}: x has {x.shape[1]} channels; the weight expects {inputs}")
    pad, size = args.pad(), args.size()
    if pad < 0 or min(*size, *x.shape[2:]) < 1:
        raise UserError(f"{op}: images of {tuple(x.shape[2:])} are too small for kernel {k} with padding {pad}")
    _check.shape(op, "bias", bias, (outputs,))
    _check.shape(op, "residual", residual, (x.shape[0], outputs, *size))
    if emb is not None and tuple(emb.shape) not in {(x.shape[0], outputs), (1, outputs)}:
        raise UserError(f"{op}: emb has shape {tuple(emb.shape)}; expected {(x.shape[0], outputs)}")


def fresh(args: Conv2dArgs) -> torch.Tensor:
    """Memory for the result, channels last."""
    shape = (args.x.shape[0], args.weight.shape[0], *args.size())
    return torch.empty(shape, dtype=args.x.dtype, device=args.x.device, memory_format=torch.channels_last)
