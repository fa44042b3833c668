"""upfirdn on CPUs in C++: float32 and float64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.upfirdn import _kernel
from edm_fast.ops.upfirdn.reference import UpfirdnArgs


def reason(args: UpfirdnArgs) -> str | None:
    if args.x.device.type != "cpu":
        return "it needs CPU tensors"
    if torch.is_autocast_enabled("cpu"):
        return "autocast wants another dtype"
    if args.x.dtype not in native.DTYPES:
        return f"it takes float32 or float64, not {args.x.dtype}"
    return native.cpu_reason() or _kernel.reason(args)


def lower(y: torch.Tensor, args: UpfirdnArgs, scratch: None) -> Callable[[int], None]:
    """The call from x to y, float32 images (N, C, H, W) channels last, bound to their memory and that of f (k, k)."""
    x, f, up, down, padding = args
    (to, _), (source, pitch) = native.window(y), native.window(x)
    how = dict(up=up > 1, factor=max(up, down), padding=padding, gain=float(up**2), channels_last=True, x_pitch=pitch)
    return native.bind("upfirdn_fwd_cpu", y=to, x=source, f=f.data_ptr(), **_kernel.sizes(y, x, f), **how)


forward = _kernel.on_kernel("cpu", "cpu", _kernel.native_kernel)
cpu = Implementation("cpu", "cpu", forward, reason, differentiable=True, lower=lower)
