"""upfirdn: resampling by an integer factor with a small filter, one copy of it per channel.

    up > 1:    y[i] = up^2 sum_j x[j] f[i + padding - up j]        size (H-1) up + K - 2 padding
    otherwise: y[i] =      sum_k x[down i - padding + k] f[k]      size (H + 2 padding - K) // down + 1

per axis, zeros outside. x: (N, C, H, W); f: (K, K), the outer product of the 1-D taps, sum 1.
Source: the resampling of DDPM++ / NCSN++ blocks (Song et al. 2021), as used by Karras et al. 2022.

Backends: C++ for CPUs and CUDA C++ in float32 and float64, and Triton in these and half precision.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast import native
from edm_fast.backend import Implementation, Op, transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check, _triton


class UpfirdnArgs(NamedTuple):
    x: torch.Tensor
    f: torch.Tensor
    up: int = 1
    down: int = 1
    padding: int = 0

    def size(self) -> list[int]:
        """Height and width of the result."""
        return [output_size(n, self.f.shape[0], self.up, self.down, self.padding) for n in self.x.shape[2:]]

    def resampling(self) -> tuple[Any, ...]:
        """The arguments of `_plain`."""
        x, f, up, down, padding = self
        return x, f.to(x.dtype), up > 1, max(up, down), padding, self.size(), float(up**2)


def reference(args: UpfirdnArgs) -> torch.Tensor:
    return _plain(*args.resampling())


def check(args: UpfirdnArgs) -> None:
    x, f, up, down, padding = args
    _check.floating("upfirdn", "x", x, 4)
    _check.floating("upfirdn", "f", f, 2)
    if f.shape[0] != f.shape[1]:
        raise UserError(f"upfirdn: f has shape {tuple(f.shape)}; expected a square filter")
    if up < 1 or down < 1 or (up > 1 and down > 1) or padding < 0:
        raise UserError(f"upfirdn: up={up}, down={down}, padding={padding}; expected one factor >= 1 and the other 1")
    if min(args.size()) < 1:
        raise UserError(f"upfirdn: images of {tuple(x.shape[2:])} are too small for a filter of {f.shape[0]} taps")


def output_size(size: int, taps: int, up: int, down: int, padding: int) -> int:
    """Output length along one axis."""
    return (size - 1) * up + taps - 2 * padding if up > 1 else (size + 2 * padding - taps) // down + 1


# One linear map or its adjoint, with the output size given, so that each is the other's backward:
#     down: y[i] = gain sum_k x[factor i - padding + k] f[k]        up: y[i] = gain sum_j x[j] f[i + padding - factor j]
def _plain(
    x: torch.Tensor, f: torch.Tensor, up: bool, factor: int, padding: int, size: list[int], gain: float
) -> torch.Tensor:
    channels, taps = x.shape[1], f.shape[0]
    weight = (f if gain == 1 else f * gain)[None, None].tile([channels, 1, 1, 1])  # (C, 1, K, K)
    if up:
        rest = [wanted - ((n - 1) * factor + taps - 2 * padding) for wanted, n in zip(size, x.shape[2:])]
        return F.conv_transpose2d(x, weight, None, factor, padding, rest, channels)
    return F.conv2d(x, weight, None, factor, padding, 1, channels)


# The fused op computes the same; `backend` is "native" or "triton".
_library = torch.library.Library("edm_fast", "FRAGMENT")
_arguments = "Tensor x, Tensor f, bool up, int factor, int padding, int[2] size, float gain, str backend"
_library.define(f"upfirdn({_arguments}) -> Tensor")


def _resample(
    x: torch.Tensor, f: torch.Tensor, up: bool, factor: int, padding: int, size: list[int], gain: float, backend: str
) -> torch.Tensor:
    """x (N, C, H, W) -> y (N, C, *size), in the memory layout of x."""
    layout = native.layout_of(x) or torch.contiguous_format
    x, f = x.contiguous(memory_format=layout), f.contiguous()
    y = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)
    if y.numel() == 0:
        return y
    last = layout == torch.channels_last
    if backend == "triton":
        from edm_fast.kernels import upfirdn as kernel  # late: a missing triton is a reason, not a crash

        kernel.forward(y, x, f, up, factor, padding, gain, last)
        return y
    n, c, h, w = x.shape
    native.call(
        f"upfirdn_fwd_{x.device.type}",
        layout=layout,
        y=y,
        x=x,
        f=f,
        n=n,
        c=c,
        h=h,
        w=w,
        out_h=size[0],
        out_w=size[1],
        taps=f.shape[0],
        factor=factor,
        padding=padding,
        gain=gain,
        up=up,
        channels_last=last,
        x_pitch=c,
    )
    return y


def _fake(
    x: torch.Tensor, f: torch.Tensor, up: bool, factor: int, padding: int, size: list[int], gain: float, backend: str
) -> torch.Tensor:
    layout = native.layout_of(x) or torch.contiguous_format
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)


_library.impl("upfirdn", _resample, "CPU")
_library.impl("upfirdn", _resample, "CUDA")
torch.library.register_fake("edm_fast::upfirdn", _fake, lib=_library)


class Resample(torch.autograd.Function):
    """The fused op with its adjoint as backward; linear in x, so that derivatives of any order are this again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        f: torch.Tensor,
        up: bool,
        factor: int,
        padding: int,
        size: list[int],
        gain: float,
        backend: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(f)
        ctx.rest = (not up, factor, padding, list(x.shape[2:]), gain, backend)
        return torch.ops.edm_fast.upfirdn(x, f, up, factor, padding, size, gain, backend)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (f,) = ctx.saved_tensors
        if transformed():  # the op would lose what `dy` carries
            return _plain(dy, f, *ctx.rest[:-1]), *[None] * 7
        return Resample.apply(dy, f, *ctx.rest), *[None] * 7


def like(args: UpfirdnArgs) -> torch.Tensor:
    x = args.x
    return torch.empty((*x.shape[:2], *args.size()), dtype=x.dtype, device=x.device)


def _fused(backend: str, args: UpfirdnArgs) -> torch.Tensor:
    if torch.is_grad_enabled() and args.x.requires_grad:
        return Resample.apply(*args.resampling(), backend)
    return torch.ops.edm_fast.upfirdn(*args.resampling(), backend)


def _fused_reason(args: UpfirdnArgs) -> str | None:
    if args.f.device != args.x.device:
        return "filter and image are on different devices"
    if args.f.requires_grad and torch.is_grad_enabled():
        return "it has no gradient for the filter"
    return None


def cpu_reason(args: UpfirdnArgs) -> str | None:
    x = args.x
    if x.device.type != "cpu":
        return "it needs CPU tensors"
    if x.dtype not in native.DTYPES:
        return f"it takes float32 or float64, not {x.dtype}"
    return native.cpu_reason() or _fused_reason(args)


def cuda_reason(args: UpfirdnArgs) -> str | None:
    x = args.x
    if x.device.type != "cuda":
        return "it needs CUDA tensors"
    if x.dtype not in native.CUDA_DTYPES:
        return f"it takes float16, bfloat16, float32 and float64, not {x.dtype}"
    return native.cuda_reason() or _fused_reason(args)


def triton_reason(args: UpfirdnArgs) -> str | None:
    return _fused_reason(args) or _triton.reason(args.x, dtypes=_triton.DTYPES64)


def triton_slower(args: UpfirdnArgs) -> str | None:
    return _triton.slower(args.x)


native_forward = functools.partial(_fused, "native")
triton_forward = functools.partial(_fused, "triton")
cpu = Implementation("cpu", "cpu", native_forward, cpu_reason, differentiable=True)
cuda = Implementation("cuda", "cuda", native_forward, cuda_reason, differentiable=True)
triton = Implementation("triton", "cuda", triton_forward, triton_reason, triton_slower, differentiable=True)
_op = Op("upfirdn", UpfirdnArgs, reference, check, cuda, triton, cpu, like=like)


def upfirdn(x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1, padding: int = 0) -> torch.Tensor:
    """Resample x (N, C, H, W) by the filter f (K, K): `up` times larger, or `down` times smaller (one of them is 1)."""
    return _op(UpfirdnArgs(x, f, up, down, padding))
