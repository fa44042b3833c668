"""attention on CPUs in C++: float32.

It goes over the keys in steps with a running maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022), and the
weights are never in memory.
"""

from __future__ import annotations

from typing import Any

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.attention import _kernel
from edm_fast.ops.attention.reference import AttentionArgs


def _sizes(args: AttentionArgs, layout: torch.memory_format) -> dict[str, Any]:
    """Sizes and strides by their native names."""
    (n, channels, h, w), heads = args.qkv.shape, args.num_heads
    c, hw = channels // (3 * heads), h * w
    of_pixel, of_channel = (channels, 1) if layout == torch.channels_last else (1, hw)  # strides of qkv, in elements
    return dict(
        layout=layout,
        n=n,
        heads=heads,
        channels=c,
        pixels=hw,
        qkv_image=channels * hw,
        qkv_head=3 * c * of_channel,
        qkv_which=of_channel,
        qkv_channel=3 * of_channel,
        qkv_pixel=of_pixel,
        a_image=heads * c * hw,
        a_head=c * of_channel,
        a_channel=of_channel,
        a_pixel=heads * c if layout == torch.channels_last else 1,
    )


def _forward(args: AttentionArgs) -> tuple[torch.Tensor, torch.Tensor]:
    layout, (a, stats) = native.dense_layout(args.qkv), _kernel.fresh(args)
    qkv = args.qkv.contiguous(memory_format=layout)
    native.call("attention_fwd_cpu", qkv=qkv, a=a, stats=stats, **_sizes(args, layout))
    return a, stats


def _backward(da: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, args: AttentionArgs) -> torch.Tensor:
    layout, dqkv = native.dense_layout(args.qkv), _kernel.fresh_gradient(args)
    qkv, da, a = (t.contiguous(memory_format=layout) for t in (args.qkv, da, a))
    native.call("attention_bwd_cpu", qkv=qkv, a=a, stats=stats, da=da, dqkv=dqkv, **_sizes(args, layout))
    return dqkv


def reason(args: AttentionArgs) -> str | None:
    if args.qkv.device.type != "cpu":
        return "it needs CPU tensors"
    if args.qkv.dtype != torch.float32:
        return f"it takes float32, not {args.qkv.dtype}"
    return native.cpu_reason()


forward = _kernel.on_kernel("cpu", "cpu", _forward, _backward)
cpu = Implementation("cpu", "cpu", forward, reason, differentiable=True)
