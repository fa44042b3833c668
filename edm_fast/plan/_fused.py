"""Calls of the Triton convolution that no op has: weights packed beforehand, the norm or upsampling before it merged.

Each function returns a way to run a node of a GPU plan: the arguments of the op, with images channels last. With
`asked`, convolutions also give the statistics of their image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Pack = Callable[[torch.Tensor, str], torch.Tensor]  # a weight of the network in the layout of this name, made once
Asked = tuple[int, float]  # the groups and eps of the norm that statistics are for


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


def _statistics(asked: Asked | None) -> Any:
    return None if asked is None else _kernels().Statistics(*asked)


def convolution(packed: Pack, asked: Asked | None = None) -> Callable[..., Any]:
    def run(
        x: torch.Tensor, weight: torch.Tensor, bias: Any, emb: Any, residual: Any, scale: float, padding: int | None
    ) -> Any:
        padding = weight.shape[-1] // 2 if padding is None else padding
        tail = _tail(bias, emb, residual, scale)
        return _kernels().forward(x, packed(weight, "plain"), *tail, padding, statistics=_statistics(asked))

    return run


def normalise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
    scale: Any,
    shift: Any,
    silu: bool,
    stats: torch.Tensor,
) -> torch.Tensor:
    """group_norm_silu with the statistics (2, N, groups) of x, which x's producer took: x is read once."""
    return _norms().apply(x, stats, (weight, bias, scale, shift), groups, silu, last=True)


def normalised(packed: Pack, asked: Asked | None = None) -> Callable[..., Any]:
    """Of a pair of group_norm_silu and a convolution: the normalised image is never written."""

    def run(first: dict[str, Any], second: dict[str, Any], stats: torch.Tensor | None = None) -> Any:
        if stats is None:
            stats = _norms().moments(first["x"], first["groups"], first["eps"], last=True)
        mean, rstd = stats
        names = ("weight", "bias", "scale", "shift", "silu")
        prologue = _kernels().Prologue(mean, rstd, **{name: first[name] for name in names})
        weight, padding = second["weight"], second["padding"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        tail = _tail(second["bias"], second["emb"], second["residual"], second["scale"])
        more = {"prologue": prologue, "statistics": _statistics(asked)}
        return _kernels().forward(first["x"], packed(weight, "plain"), *tail, padding, **more)

    return run


def upsampled(packed: Pack, asked: Asked | None = None) -> Callable[..., Any]:
    """Of a pair of upsampling by repetition and a 3x3 convolution: 16 products in place of 36, no large image."""

    def run(first: dict[str, Any], second: dict[str, Any]) -> Any:
        tail = _tail(second["bias"], second["emb"], second["residual"], second["scale"])
        return _kernels().upsample(first["x"], packed(second["weight"], "phases"), *tail, statistics=_statistics(asked))

    return run


def attention(qkv: torch.Tensor, num_heads: int, apart: bool) -> torch.Tensor:
    """Of channels in the order which, head, channel (see `separate_qkv`): vectors of channels are vectors in memory."""
    from edm_fast.kernels import attention as kernels

    return kernels.forward(qkv, num_heads, apart)[0]
