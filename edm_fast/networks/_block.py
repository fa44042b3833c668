"""UNetBlock: the residual block DDPM++, NCSN++ and ADM are made of, with optional resampling and self-attention.

    h = conv0(silu(norm0(x)))
    h = silu(shift + norm1(h) (scale + 1))              with adaptive_scale: (scale, shift) = affine(emb)
    h = silu(norm1(h + affine(emb)))                    without
    h = (conv1(dropout(h)) + skip(x)) skip_scale
    h = (proj(attention(qkv(norm2(h)))) + h) skip_scale                                if it has heads

Karras et al. 2022, Appendix F and Table 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edm_fast.networks._layers import Conv2d, GroupNorm, Linear, drop_values
from edm_fast.ops import attention as attention_op


class UNetBlock(torch.nn.Module):
    """x: (N, in, H, W), emb: (N or 1, emb) -> (N, out, H', W'), H' = 2H with `up`, H/2 with `down`.

    Without num_heads, attention has out // channels_per_head heads; none at all if that is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0,
        skip_scale: float = 1,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Mapping[str, Any] | None = None,
        init_zero: Mapping[str, Any] | None = None,
        init_attn: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        init = dict(init or {})
        init_zero = {"init_weight": 0} if init_zero is None else dict(init_zero)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.emb_channels = emb_channels
        heads = out_channels // channels_per_head if num_heads is None else num_heads
        self.num_heads = heads if attention else 0
        self.dropout = dropout
        self.skip_scale = float(skip_scale)
        self.adaptive_scale = adaptive_scale

        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, **resample, **init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), **init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, **init_zero)
        self.skip = None
        if out_channels != in_channels or up or down:
            mixes = resample_proj or out_channels != in_channels
            self.skip = Conv2d(in_channels, out_channels, kernel=int(mixes), **resample, **init)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            attn = init if init_attn is None else dict(init_attn)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, **attn)
            self.proj = Conv2d(out_channels, out_channels, kernel=1, **init_zero)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        params = self.affine(emb).to(x.dtype)  # (N or 1, out or 2 out)
        h = self.norm0(x, silu=True)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, 1)
            h = self.norm1(self.conv0(h), scale, shift, silu=True)
        else:
            h = self.norm1(self.conv0(h, emb=params), silu=True)
        h = drop_values(h, self.dropout, self.training)
        h = self.conv1(h, residual=x if self.skip is None else self.skip(x), scale=self.skip_scale)
        if self.num_heads:
            a = attention_op(self.qkv(self.norm2(h)), self.num_heads)
            h = self.proj(a, residual=h, scale=self.skip_scale)
        return h
