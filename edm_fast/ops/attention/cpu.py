"""attention on CPUs in C++: float32.

It goes over the keys in steps with a running maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022), and the
weights are never in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops import _cpu
from edm_fast.ops.attention import _kernel
from edm_fast.ops.attention.reference import AttentionArgs


def _sizes(args: AttentionArgs, layout: torch.memory_format) -> dict[str, Any]:
    """Sizes and strides of dense images by their native names."""
    (n, channels, h, w), heads = args.qkv.shape, args.num_heads
    c, hw = channels // (3 * heads), h * w
    if layout == torch.channels_last:
        return dict(layout=layout, **_channels_last(n, heads, c, hw, channels, heads * c))
    sizes: dict[str, Any] = dict(layout=layout, n=n, heads=heads, channels=c, pixels=hw)
    of_qkv = dict(qkv_image=channels * hw, qkv_head=3 * c * hw, qkv_which=hw, qkv_channel=3 * hw, qkv_pixel=1)
    return dict(**sizes, **of_qkv, a_image=heads * c * hw, a_head=c * hw, a_channel=hw, a_pixel=1)


def _channels_last(
    n: int, heads: int, c: int, pixels: int, pitch: int, a_pitch: int, separate: bool = False
) -> dict[str, Any]:
    """Likewise where channels are next to each other, and from pixel to pixel there are `pitch` and `a_pitch` elements.

    separate: the channels of qkv come in the order which, head, channel.
    """
    of_head, of_which, of_channel = (c, heads * c, 1) if separate else (3 * c, 1, 3)
    return dict(
        **dict(n=n, heads=heads, channels=c, pixels=pixels, qkv_image=pixels * pitch, qkv_head=of_head),
        **dict(qkv_which=of_which, qkv_channel=of_channel, qkv_pixel=pitch),
        **dict(a_image=pixels * a_pitch, a_head=c, a_channel=1, a_pixel=a_pitch),
    )


def lower(a: torch.Tensor, args: AttentionArgs, scratch: None, separate: bool = False) -> Callable[[int], None]:
    """The call bound to the memory of float32 images channels last; `separate` as above."""
    (n, channels, h, w), (qkv, heads) = a.shape, args
    (to, a_pitch), (source, pitch) = native.window(a), native.window(qkv)
    sizes = _channels_last(n, heads, channels // heads, h * w, pitch, a_pitch, separate)
    return native.bind("attention_fwd_cpu", qkv=source, a=to, **sizes)


def _forward(args: AttentionArgs) -> tuple[torch.Tensor, torch.Tensor]:
    layout, (a, stats) = native.dense_layout(args.qkv), _kernel.fresh(args)
    qkv = args.qkv.contiguous(memory_format=layout)
    native.call("attention_fwd_cpu", qkv=qkv, a=a, stats=stats, **_sizes(args, layout))
    return a, stats


def _backward(da: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, args: AttentionArgs) -> torch.Tensor:
    layout = native.dense_layout(args.qkv)
    dqkv = _kernel.fresh_gradient(args, layout)
    qkv, da, a = [t.contiguous(memory_format=layout) for t in (args.qkv, da, a)]
    native.call("attention_bwd_cpu", qkv=qkv, a=a, stats=stats, da=da, dqkv=dqkv, **_sizes(args, layout))
    return dqkv


def reason(args: AttentionArgs) -> str | None:
    return _cpu.float32_reason(args.qkv) or native.cpu_reason()


forward = _kernel.on_kernel("cpu", "cpu", _forward, _backward)
cpu = Implementation("cpu", "cpu", forward, reason, differentiable=True, lower=lower)
