"""upfirdn in Triton: half precision, float32 and float64."""

from __future__ import annotations

import torch

from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.upfirdn import _kernel
from edm_fast.ops.upfirdn.reference import UpfirdnArgs


def _kernel_call(y: torch.Tensor, *rest: object) -> None:
    from edm_fast.kernels import upfirdn as kernel  # late: a missing triton is a reason, not a crash

    kernel.forward(y, *rest)


def reason(args: UpfirdnArgs) -> str | None:
    return _kernel.reason(args) or _triton.reason(args.x, dtypes=_triton.DTYPES64)


def slower(args: UpfirdnArgs) -> str | None:
    return _triton.slower(args.x)


forward = _kernel.on_kernel("triton", _triton.DEVICES, _kernel_call)
triton = Implementation("triton", "cuda", forward, reason, slower, differentiable=True)
