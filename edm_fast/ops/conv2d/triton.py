"""conv2d in Triton: kernels 1x1 and 3x3 in float16, bfloat16 and float32 (TF32 where torch.backends.cudnn.allow_tf32 is
set, as for the reference). Under autocast it takes the dtype that the reference's convolution would."""

from __future__ import annotations

import torch

from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.conv2d import _kernel, _tail
from edm_fast.ops.conv2d.reference import Conv2dArgs


def _forward(args: Conv2dArgs) -> torch.Tensor:
    from edm_fast.kernels import conv2d as kernels  # late: a missing triton is a reason, not a crash

    dtype, residual = args.x.dtype, args.residual
    residual = None if residual is None else residual.to(dtype)
    return kernels.forward(
        args.x, kernels.pack(args.weight.to(dtype)), _kernel.rows(args), residual, args.scale, args.pad()
    )


def _adjoint(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    from edm_fast.kernels import conv2d as kernels

    packed = kernels.pack(args.weight.to(dy.dtype), transposed=True)
    return kernels.forward(dy, packed, padding=args.weight.shape[-1] - 1 - args.pad())


def _weight_gradient(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    from edm_fast.kernels import conv2d as kernels

    return kernels.weight_gradient(dy, args.x, args.weight.shape[-1], args.pad())


_run = _kernel.on_kernel("triton", _triton.DEVICES, _forward, _adjoint, _weight_gradient, _tail.tail_backward)


def forward(args: Conv2dArgs) -> torch.Tensor:
    return _run(_kernel.in_autocast(args))


def reason(args: Conv2dArgs) -> str | None:
    return _triton.reason(args.x, args.weight, args.bias, args.emb, args.residual) or _kernel.reason(args)


def slower(args: Conv2dArgs) -> str | None:
    return _triton.slower(args.x) or "it has not been measured against cuDNN, as accelerate() does for each layer"


triton = Implementation("triton", "cuda", forward, reason, slower, differentiable=True)
