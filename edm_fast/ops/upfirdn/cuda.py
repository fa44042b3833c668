"""upfirdn on GPUs in CUDA C++: half precision, float32 and float64."""

from __future__ import annotations

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.upfirdn import _kernel
from edm_fast.ops.upfirdn.reference import UpfirdnArgs


def reason(args: UpfirdnArgs) -> str | None:
    if args.x.device.type != "cuda":
        return "it needs CUDA tensors"
    if args.x.dtype not in native.CUDA_DTYPES:
        return f"it takes float16, bfloat16, float32 and float64, not {args.x.dtype}"
    return native.cuda_reason() or _kernel.reason(args)


forward = _kernel.on_kernel("cuda", "cuda", _kernel.native_kernel)
cuda = Implementation("cuda", "cuda", forward, reason, differentiable=True)
