"""attention: softmax(Q^T K / sqrt(C)) V over the pixels of an image, from the output of one qkv convolution."""

from __future__ import annotations

import torch

from edm_fast.backend import Op
from edm_fast.ops.attention.cpu import cpu
from edm_fast.ops.attention.reference import AttentionArgs, cases, check, like, reference
from edm_fast.ops.attention.triton import triton

_op = Op("attention", AttentionArgs, reference, check, triton, cpu, like=like, cases=cases)


def attention(qkv: torch.Tensor, num_heads: int = 1) -> torch.Tensor:
    """Attention output (N, heads C, H, W) from interleaved qkv (N, 3 heads C, H, W).

        w[q, k] = softmax_k sum_c Q[c, q] (K[c, k] / sqrt(C))          a[c, q] = sum_k w[q, k] V[c, k]

    Channel = head 3C + 3c + (0 for q, 1 for k, 2 for v): the three interleave with stride 3 inside each head. In the
    result channel = head C + c. UserError if the channels do not divide so.
    Precision: k is scaled in its own dtype; product and softmax run in float32; w is rounded to the input dtype.
    Source: the self-attention of DDPM++ and ADM; Karras et al. 2022, Appendix F.
    """
    return _op(AttentionArgs(qkv, num_heads))
