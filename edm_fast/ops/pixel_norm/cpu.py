"""pixel_norm on CPUs in C++: float32. Results lie channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops import _cpu
from edm_fast.ops.pixel_norm import _kernel
from edm_fast.ops.pixel_norm._kernel import LAST, tensors
from edm_fast.ops.pixel_norm.reference import PixelNormArgs, like


def _arguments(args: PixelNormArgs) -> dict[str, Any]:
    """What the native functions share."""
    (n, c, h, w), gain = args.x.shape, args.gain
    return dict(
        **dict(n=n, c=c, space=h * w, groups=args.groups, interleaved=args.interleaved, eps=float(args.eps)),
        **dict(norm=args.norm, silu=args.silu, gain_rows=0 if gain is None else gain.shape[0]),
    )


def _forward(args: PixelNormArgs) -> torch.Tensor:
    y, c = like(args), args.x.shape[1]
    if y.numel():
        native.call("pixel_norm_fwd_cpu", layout=LAST, y=y, x_pitch=c, y_pitch=c, **tensors(args), **_arguments(args))
    return y


def _backward(dy: torch.Tensor, args: PixelNormArgs) -> _kernel.Pair:
    dx, dgain = _kernel.fresh_gradients(args)
    if dx.numel() == 0:
        return dx, dgain.zero_()
    found = {"dy": dy.contiguous(memory_format=LAST), "dx": dx, "dgain": dgain if args.gain is not None else None}
    native.call("pixel_norm_bwd_cpu", layout=LAST, **found, **tensors(args), **_arguments(args))
    return dx, dgain


def lower(result: torch.Tensor, args: PixelNormArgs, scratch: None) -> Callable[[int], None]:
    """The call bound to the memory of float32 images channels last; or, without the norm, to the (N, 3C) numbers that
    a convolution of x takes in (csrc/group_norm_silu.h)."""
    source, x_pitch = native.window(args.x)
    gain = None if args.gain is None else native.window(args.gain)[0]
    to, y_pitch = native.window(result)
    where: dict[str, Any] = dict(y=to, y_pitch=y_pitch) if result.ndim == 4 else dict(affine=to)
    return native.bind("pixel_norm_fwd_cpu", x=source, x_pitch=x_pitch, gain=gain, **where, **_arguments(args))


def reason(args: PixelNormArgs) -> str | None:
    return _cpu.float32_reason(args.x, args.gain) or _kernel.reason(args) or native.cpu_reason()


forward = _kernel.on_kernel("cpu", "cpu", _forward, _backward)
cpu = Implementation("cpu", "cpu", forward, reason, _kernel.slower, differentiable=True, lower=lower)
