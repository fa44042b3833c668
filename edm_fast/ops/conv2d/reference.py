"""The definition of conv2d: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.backend import transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check
from edm_fast.ops._cases import LAYOUTS, Call, Case, Make


class Conv2dArgs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    emb: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    scale: float = 1.0
    padding: int | None = None
    clip: float | None = None

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
    x, weight, bias, emb, residual, scale, _, clip = args
    y = F.conv2d(x, weight.to(x.dtype), padding=args.pad())
    in_place = not transformed()  # torch.func and forward mode forbid it
    if bias is not None:
        y = _plus(y, bias.to(x.dtype).reshape(1, -1, 1, 1), in_place)
    if emb is not None:
        y = _plus(y, emb[:, :, None, None], in_place)
    if residual is not None:
        y = _plus(y, residual, in_place)
    y = y if scale == 1.0 else y * scale
    return y if clip is None else y.clip(-clip, clip)


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


def _conv(shape: tuple[int, ...], out: int, k: int, *tail: str, layout: str = "contiguous", **kwargs: Any) -> Callable:
    def build(make: Make) -> Call:
        n, c, h, w = shape
        tensors = {
            "bias": lambda: make(out),
            "emb": lambda: make(n, out),
            "residual": lambda: make(n, out, h, w, layout=layout),
        }
        weight = make(out, c, k, k, scale=1 / math.sqrt(c * k * k))
        return (make(*shape, layout=layout), weight), {**{name: tensors[name]() for name in tail}, **kwargs}

    return build


def cases() -> Iterator[Case]:
    half = math.sqrt(0.5)
    yield Case("cifar10_32", _conv((8, 256, 32, 32), 256, 3, "bias"), "real")
    yield Case("cifar10_16_residual", _conv((8, 256, 16, 16), 256, 3, "bias", "residual", scale=half), "real")
    yield Case("cifar10_8", _conv((8, 256, 8, 8), 256, 3, "bias"), "real")
    yield Case("cifar10_16_skip", _conv((8, 512, 16, 16), 256, 3, "bias"), "real")
    yield Case("cifar10_16_qkv", _conv((8, 256, 16, 16), 768, 1, "bias"), "real")
    yield Case("cifar10_32_skip", _conv((8, 512, 32, 32), 256, 1, "bias"), "real")
    for channels, size in ((192, 64), (384, 32), (576, 16), (768, 8)):
        tail = ("bias", "residual")
        yield Case(f"adm_{channels}_{size}", _conv((1, channels, size, size), channels, 3, *tail), "real")
    yield Case("demo_32_32", _conv((8, 32, 32, 32), 32, 3, "bias"), "real")
    yield Case("demo_64_16", _conv((8, 64, 16, 16), 64, 3, "bias", "residual", scale=half), "real")
    for layout in LAYOUTS:
        yield Case(f"all_{layout}", _conv((2, 5, 7, 9), 6, 3, "bias", "emb", "residual", layout=layout, scale=half))
    yield Case("k1", _conv((2, 5, 7, 9), 4, 1))
    yield Case("padding_0", _conv((2, 3, 6, 5), 4, 3, "bias", padding=0))
    yield Case("batch_0", _conv((0, 3, 6, 5), 4, 3, "bias"))
    yield Case("small", _conv((2, 32, 8, 8), 32, 3, "bias", "residual", scale=half), "small")
    for c, size, out, k in ((256, 32, 256, 3), (256, 16, 256, 3), (512, 16, 256, 1)):
        large = _conv((64, c, size, size), out, k, "bias", layout="channels_last")
        yield Case(f"64x{c}x{size}x{size} to {out}, {k}x{k}", large, "large")
