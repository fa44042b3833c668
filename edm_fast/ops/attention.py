"""attention: softmax(Q^T K / sqrt(C)) V over the pixels of an image, from the output of one qkv convolution.

    w[q, k] = softmax_k sum_c Q[c, q] (K[c, k] / sqrt(C))          a[c, q] = sum_k w[q, k] V[c, k]

qkv: (N, 3 heads C, H, W), where channel = head 3C + 3c + (0 for q, 1 for k, 2 for v): the three interleave with
stride 3 inside each head. Result: (N, heads C, H, W), channel = head C + c.
Precision: k is scaled in its own dtype; product and softmax run in float32; w is rounded to the input dtype.
Source: the self-attention of DDPM++ and ADM; Karras et al. 2022, Appendix F.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from edm_fast.backend import Op
from edm_fast.errors import UserError
from edm_fast.ops import _check


class AttentionWeights(torch.autograd.Function):
    """w = softmax(q^T k / sqrt(C)), (N, C, Q), (N, C, K) -> (N, Q, K), with the backward taken from the rounded w."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scaled = k / math.sqrt(k.shape[1])
        wide = torch.promote_types(q.dtype, torch.float32)
        # autocast would take the product in half precision; it knows no meta tensors, which ask for shapes alone
        with contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
            w = torch.einsum("ncq,nck->nqk", q.to(wide), scaled.to(wide)).softmax(dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, dw: torch.Tensor) -> Any:
        q, k, w = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        w, dw = w.to(wide), dw.to(wide)
        db = w * (dw - (w * dw).sum(dim=2, keepdim=True))  # softmax backward, (N, Q, K)
        dq = torch.einsum("nck,nqk->ncq", k.to(wide), db).to(q.dtype) / math.sqrt(k.shape[1])
        dk = torch.einsum("ncq,nqk->nck", q.to(wide), db).to(k.dtype) / math.sqrt(k.shape[1])
        return dq, dk


def attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """w (N, Q, K) in the dtype of q (N, C, Q) and k (N, C, K)."""
    return AttentionWeights.apply(q, k)


def reference(qkv: torch.Tensor, num_heads: int = 1) -> torch.Tensor:
    """Attention output (N, heads C, H, W) from interleaved qkv (N, 3 heads C, H, W)."""
    n, channels, *spatial = qkv.shape
    head = channels // (3 * num_heads)
    q, k, v = qkv.reshape(n * num_heads, head, 3, math.prod(spatial)).unbind(2)  # each (N heads, C, HW)
    a = torch.einsum("nqk,nck->ncq", attention_weights(q, k), v)
    return a.reshape(n, num_heads * head, *spatial)


def check(qkv: torch.Tensor, num_heads: int = 1) -> None:
    _check.floating("attention", "qkv", qkv, 4)
    if num_heads < 1 or qkv.shape[1] == 0 or qkv.shape[1] % (3 * num_heads):
        raise UserError(f"attention: {qkv.shape[1]} channels do not divide into q, k, v of {num_heads} heads")


attention = Op("attention", reference, check)
