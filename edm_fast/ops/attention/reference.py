"""The definition of attention: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from edm_fast.backend import transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check
from edm_fast.ops._cases import LAYOUTS, Case


class AttentionArgs(NamedTuple):
    qkv: torch.Tensor
    num_heads: int = 1


def _weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """w = softmax(q^T k / sqrt(C)), (N, C, Q), (N, C, K) -> (N, Q, K)."""
    scaled = k / math.sqrt(k.shape[1])
    wide = torch.promote_types(q.dtype, torch.float32)
    # autocast would take the product in half precision; it knows no meta tensors, which ask for shapes alone
    with contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
        return torch.einsum("ncq,nck->nqk", q.to(wide), scaled.to(wide)).softmax(dim=2).to(q.dtype)


class AttentionWeights(torch.autograd.Function):
    """`_weights` with the backward taken from the rounded w."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        w = _weights(q, k)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, dw: torch.Tensor) -> Any:
        q, k, w = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        w, dw = w.to(wide), dw.to(wide)
        db = torch._softmax_backward_data(dw, w, 2, wide)  # (N, Q, K); the published code's, to the bit
        # torch.einsum has no rule for batches of gradients (is_grads_batched)
        dq = torch.bmm(k.to(wide), db.mT).to(q.dtype) / math.sqrt(k.shape[1])
        dk = torch.bmm(q.to(wide), db).to(k.dtype) / math.sqrt(k.shape[1])
        return dq, dk


def attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """w (N, Q, K) in the dtype of q (N, C, Q) and k (N, C, K)."""
    # an autograd function would need rules of its own for torch.func and forward mode; the plain formula has torch's
    return _weights(q, k) if transformed() else AttentionWeights.apply(q, k)


def reference(args: AttentionArgs) -> torch.Tensor:
    qkv, num_heads = args
    n, channels, *spatial = qkv.shape
    head = channels // (3 * num_heads)
    q, k, v = qkv.reshape(n * num_heads, head, 3, math.prod(spatial)).unbind(2)  # each (N heads, C, HW)
    a = torch.einsum("nqk,nck->ncq", attention_weights(q, k), v)
    return a.reshape(n, num_heads * head, *spatial)


def check(args: AttentionArgs) -> None:
    qkv, num_heads = args
    _check.floating("attention", "qkv", qkv, 4)
    if num_heads < 1 or qkv.shape[1] == 0 or qkv.shape[1] % (3 * num_heads):
        raise UserError(f"attention: {qkv.shape[1]} channels do not divide into q, k, v of {num_heads} heads")


def like(args: AttentionArgs) -> torch.Tensor:
    qkv = args.qkv
    n, channels, *size = qkv.shape
    return torch.empty((n, channels // 3, *size), dtype=qkv.dtype, device=qkv.device)


def _attention(n: int, c: int, h: int, w: int, heads: int, **kwargs: Any) -> Callable:
    return lambda make: ((make(n, 3 * heads * c, h, w, **kwargs), heads), {})


def cases() -> Iterator[Case]:
    def case(name: str, *sizes: int, use: str = "odd", **kwargs: Any) -> Case:
        return Case(name, _attention(*sizes, **kwargs), use)

    yield case("cifar10_16", 8, 256, 16, 16, 1, use="real")
    yield case("cifar10_8", 8, 256, 8, 8, 1, use="real")
    yield case("adm_32", 2, 64, 32, 32, 6, use="real")
    yield case("adm_16", 2, 64, 16, 16, 9, use="real")
    yield case("adm_8", 2, 64, 8, 8, 12, use="real")
    for layout in LAYOUTS:
        yield case(f"odd_{layout}", 2, 5, 3, 7, 3, layout=layout)
        yield case(f"wide_{layout}", 1, 131, 5, 7, 1, layout=layout)
        yield case(f"many_keys_{layout}", 1, 7, 19, 17, 2, layout=layout)
        yield case(f"large_logits_{layout}", 2, 16, 6, 6, 2, layout=layout, scale=12.0)  # e^x of them overflows
    yield case("one_channel", 2, 1, 4, 5, 3)
    yield case("one_pixel", 2, 4, 1, 1, 2)
    yield case("batch_0", 0, 4, 3, 3, 2)
    yield Case("small", _attention(2, 32, 8, 8, 1), "small")
    for c, size, heads in ((256, 16, 1), (64, 32, 6), (64, 16, 9), (64, 8, 12)):
        large = _attention(64, c, size, size, heads, layout="channels_last")
        yield Case(f"64x{heads}x{c}x{size**2}", large, "large")
