"""group_norm_silu on GPUs in CUDA C++, without a backward: half precision, float32 and float64."""

from __future__ import annotations

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops._fused import torch_op
from edm_fast.ops.group_norm_silu import _kernel
from edm_fast.ops.group_norm_silu.reference import GroupNormSiluArgs


def _forward(args: GroupNormSiluArgs) -> torch.Tensor:
    x, y, layout = args.x, _kernel.fresh(args.x), native.dense_layout(args.x)
    if y.numel() == 0:
        return y
    arguments = dict(_kernel.arguments_of(args, layout), y=y, x_pitch=x.shape[1])
    size = native.cuda_workspace("group_norm_silu_fwd", **arguments)
    workspace = x.new_empty(size // x.element_size()) if size else None
    native.call("group_norm_silu_fwd_cuda", workspace=workspace, **arguments)
    return y


_op = torch_op("group_norm_silu_cuda", "cuda", GroupNormSiluArgs, _forward, lambda args: _kernel.fresh(args.x))


def forward(args: GroupNormSiluArgs) -> torch.Tensor:
    return _op(*args)


def reason(args: GroupNormSiluArgs) -> str | None:
    x, tensors = args.x, args.tensors()
    if any([t.device.type != "cuda" or t.device != x.device for t in tensors]):
        return "it needs CUDA tensors of one device"
    if x.dtype not in native.CUDA_DTYPES:
        return f"it takes float16, bfloat16, float32 and float64, not {x.dtype}"
    if any([t.dtype != x.dtype for t in tensors[3:]]):
        return "scale and shift have another dtype than x"
    if x.shape[1] // args.groups > 256:
        return f"it takes groups of up to 256 channels, not {x.shape[1] // args.groups}"
    return native.cuda_reason()


cuda = Implementation("cuda", "cuda", forward, reason)
