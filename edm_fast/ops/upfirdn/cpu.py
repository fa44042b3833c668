"""upfirdn on CPUs in C++: float32 and float64."""

from __future__ import annotations

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.upfirdn import _kernel
from edm_fast.ops.upfirdn.reference import UpfirdnArgs


def reason(args: UpfirdnArgs) -> str | None:
    if args.x.device.type != "cpu":
        return "it needs CPU tensors"
    if args.x.dtype not in native.DTYPES:
        return f"it takes float32 or float64, not {args.x.dtype}"
    return native.cpu_reason() or _kernel.reason(args)


forward = _kernel.on_kernel("cpu", "cpu", _kernel.native_kernel)
cpu = Implementation("cpu", "cpu", forward, reason, differentiable=True)
