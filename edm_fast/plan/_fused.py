"""Calls of the Triton convolution that no op has: weights packed beforehand, the norm or upsampling before it merged.

Each function returns a way to run a node of a GPU plan: the arguments of the op, with images channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Pack = Callable[[torch.Tensor, str], torch.Tensor]  # a weight of the network in the layout of this name, made once


def _kernels() -> Any:
    from edm_fast.kernels import conv2d  # late: a missing triton is a reason, not a crash

    return conv2d


def _norms() -> Any:
    from edm_fast.kernels import group_norm_silu

    return group_norm_silu


def pack(weight: torch.Tensor, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A weight (O, C, k, k) as the kernels read it; layout "phases": after upsampling by 2."""
    return _kernels().pack_phases(weight, dtype) if layout == "phases" else _kernels().pack(weight, dtype)


def _tail(bias: Any, emb: Any, residual: Any, scale: float) -> tuple[Any, Any, float]:
    return emb if bias is None else bias[None] if emb is None else emb + bias, residual, float(scale)


def convolution(packed: Pack) -> Callable[..., torch.Tensor]:
    def run(
        x: torch.Tensor, weight: torch.Tensor, bias: Any, emb: Any, residual: Any, scale: float, padding: int | None
    ) -> torch.Tensor:
        padding = weight.shape[-1] // 2 if padding is None else padding
        return _kernels().forward(x, packed(weight, "plain"), *_tail(bias, emb, residual, scale), padding)

    return run


def normalised(packed: Pack) -> Callable[..., torch.Tensor]:
    """Of a pair of group_norm_silu and a convolution: the normalised image is never written."""

    def run(first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
        mean, rstd = _norms().moments(first["x"], first["groups"], first["eps"], last=True)
        names = ("weight", "bias", "scale", "shift", "silu")
        prologue = _kernels().Prologue(mean, rstd, **{name: first[name] for name in names})
        weight, padding = second["weight"], second["padding"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        tail = _tail(second["bias"], second["emb"], second["residual"], second["scale"])
        return _kernels().forward(first["x"], packed(weight, "plain"), *tail, padding, prologue=prologue)

    return run


def upsampled(packed: Pack) -> Callable[..., torch.Tensor]:
    """Of a pair of upsampling by repetition and a 3x3 convolution: 16 products in place of 36, no large image."""

    def run(first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
        tail = _tail(second["bias"], second["emb"], second["residual"], second["scale"])
        return _kernels().upsample(first["x"], packed(second["weight"], "phases"), *tail)

    return run


def attention(qkv: torch.Tensor, num_heads: int, apart: bool) -> torch.Tensor:
    """Of channels in the order which, head, channel (see `separate_qkv`): vectors of channels are vectors in memory."""
    from edm_fast.kernels import attention as kernels

    return kernels.forward(qkv, num_heads, apart)[0]
