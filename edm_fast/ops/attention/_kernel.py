"""attention on a kernel: what the backends have in common.

The forward op also returns what its backward needs: (2, N, heads HW), of each query the largest logit and
1 / sum of exp(logit - largest). Both, because the log of that sum added to a large logit would lose its digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edm_fast import native
from edm_fast.ops._fused import differentiable, torch_op
from edm_fast.ops.attention.reference import AttentionArgs, reference

Forward = Callable[[AttentionArgs], tuple[torch.Tensor, torch.Tensor]]
# backward(da, a, stats, args) -> dqkv
Backward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, AttentionArgs], torch.Tensor]


def fresh(args: AttentionArgs, stats_dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the result and the statistics, these by default in the dtype of qkv."""
    qkv = args.qkv
    n, channels, h, w = qkv.shape
    layout = native.dense_layout(qkv)
    a = torch.empty((n, channels // 3, h, w), dtype=qkv.dtype, device=qkv.device, memory_format=layout)
    return a, qkv.new_empty((2, n, args.num_heads * h * w), dtype=stats_dtype)


def fresh_gradient(args: AttentionArgs, layout: torch.memory_format | None = None) -> torch.Tensor:
    """Memory in this layout, by default that of qkv."""
    return torch.empty_like(args.qkv, memory_format=layout or native.dense_layout(args.qkv))


def on_kernel(
    name: str, device: str, forward: Forward, backward: Backward, stats_dtype: torch.dtype | None = None
) -> Callable[[AttentionArgs], torch.Tensor]:
    """The op on a kernel, as torch.ops.edm_fast.attention_NAME."""
    forward_op = torch_op(
        f"attention_{name}",
        device,
        AttentionArgs,
        forward,
        lambda args: fresh(args, stats_dtype),
        returns="(Tensor a, Tensor stats)",
    )
    backward_op = torch_op(
        f"attention_{name}_backward",
        device,
        AttentionArgs,
        backward,
        lambda da, a, stats, args: fresh_gradient(args),
        before=["da", "a", "stats"],
    )
    return differentiable(
        AttentionArgs,
        reference,
        forward_op,
        lambda args, needs, da, a, stats: {"qkv": backward_op(da, a, stats, *args)},
        saved={"qkv": ["qkv"]},
        keeps_result=True,
    )
