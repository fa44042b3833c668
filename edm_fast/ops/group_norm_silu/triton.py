"""group_norm_silu in Triton: half precision and float32.

Everything is float32 inside, so that weight and bias, scale and shift may have dtypes of their own.
"""

from __future__ import annotations

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.group_norm_silu import _kernel
from edm_fast.ops.group_norm_silu.reference import GroupNormSiluArgs


def _statistics(args: GroupNormSiluArgs) -> torch.Tensor:
    """(2, N, groups) float32: the mean of each group and 1 / sqrt(var + eps)."""
    return args.x.new_empty((2, args.x.shape[0], args.groups), dtype=torch.float32)


def _forward(args: GroupNormSiluArgs) -> _kernel.Pair:
    from edm_fast.kernels import group_norm_silu as kernels  # late: a missing triton is a reason, not a crash

    x, weight, bias, groups, eps, scale, shift, silu = args
    layout = native.dense_layout(x)
    x = x.contiguous(memory_format=layout)
    if x.numel() == 0:
        return torch.empty_like(x), _statistics(args).zero_()
    last = _kernel.channels_are_last(x, layout)
    return kernels.forward(x, (weight, bias, scale, shift), groups, eps, silu, last)


def _backward(dy: torch.Tensor, stats: torch.Tensor, args: GroupNormSiluArgs) -> _kernel.Pair:
    from edm_fast.kernels import group_norm_silu as kernels

    x, weight, bias, groups, _, scale, shift, silu = args
    layout = native.dense_layout(x)
    x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    if x.numel() == 0:
        dx, dparams = _kernel.fresh_gradients(args, torch.float32)
        return dx, dparams.zero_()
    last = _kernel.channels_are_last(x, layout)
    return kernels.backward(dy, stats, x, (weight, bias, scale, shift), groups, silu, last)


def reason(args: GroupNormSiluArgs) -> str | None:
    return _triton.reason(*args.tensors())


def slower(args: GroupNormSiluArgs) -> str | None:
    return _triton.slower(args.x)


forward = _kernel.on_kernel("triton", _triton.DEVICES, _forward, _backward, _statistics, torch.float32)
triton = Implementation("triton", "cuda", forward, reason, slower, differentiable=True)
