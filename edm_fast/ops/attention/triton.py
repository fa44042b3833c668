"""attention in Triton: half precision and float32, statistics in float32."""

from __future__ import annotations

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.attention import _kernel
from edm_fast.ops.attention.reference import AttentionArgs


def _forward(args: AttentionArgs) -> tuple[torch.Tensor, torch.Tensor]:
    from edm_fast.kernels import attention as kernels  # late: a missing triton is a reason, not a crash

    return kernels.forward(args.qkv.contiguous(memory_format=native.dense_layout(args.qkv)), args.num_heads)


def _backward(da: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, args: AttentionArgs) -> torch.Tensor:
    from edm_fast.kernels import attention as kernels

    layout = native.dense_layout(args.qkv)
    qkv, da, a = (t.contiguous(memory_format=layout) for t in (args.qkv, da, a))
    return kernels.backward(da, qkv, a, stats, args.num_heads)


def reason(args: AttentionArgs) -> str | None:
    qkv, num_heads = args
    if (why := _triton.reason(qkv)) is not None:
        return why
    from edm_fast.kernels import attention as kernels

    size, backward = qkv.shape[1] // (3 * num_heads), qkv.requires_grad and torch.is_grad_enabled()
    most = kernels.MAX_SIZE_FLOAT_BACKWARD if backward and qkv.dtype == torch.float32 else kernels.MAX_SIZE
    return None if size <= most else f"it takes heads of up to {most} channels here, not {size}"


def slower(args: AttentionArgs) -> str | None:
    return _triton.slower(args.qkv)


forward = _kernel.on_kernel("triton", _triton.DEVICES, _forward, _backward, torch.float32)
triton = Implementation("triton", "cuda", forward, reason, slower, differentiable=True)
