"""Convolution and attention weights that add in the order of the machine on which the golden data were recorded.

oneDNN and torch's softmax sum in another order with AVX-512 than with AVX2, so that golden gradients of networks cannot
be compared to the bit as they are. Everything else (norms, linear layers, elementwise work) rounds alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

LANES = 16  # of float32 in an AVX-512 register; also oneDNN's block of channels


def fma(a, b, c):
    """a b + c, rounded once to float32."""
    return (a.double() * b.double() + c.double()).float()


def convolve(x, weight, padding, backward=False):
    """oneDNN's AVX-512 convolution of x (N, C, H, W) with weight (O, C, k, k).

    One chain of fused multiply-adds over taps and channels for each block of 16 channels; of kernel 1 over all of them.
    As the backward of the data it goes over the taps in reverse.
    """
    channels, k = weight.shape[1:3]
    x = F.pad(x, [padding] * 4)
    height, width = x.shape[2] - k + 1, x.shape[3] - k + 1
    taps = [(i, j) for i in range(k) for j in range(k)]
    total = None
    for first in range(0, channels, LANES if k > 1 else channels):
        part = torch.zeros(x.shape[0], weight.shape[0], height, width)
        for i, j in reversed(taps) if backward else taps:
            for c in range(first, min(first + LANES, channels) if k > 1 else channels):
                part = fma(x[:, c : c + 1, i : i + height, j : j + width], weight[:, c, i, j, None, None], part)
        total = part if total is None else total + part
    return total


class Convolution(torch.autograd.Function):
    """`convolve` and its adjoint; the gradient of the weight is torch's, and so is all of fewer than 16 channels."""

    @staticmethod
    def forward(ctx, x, weight, padding):
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding) if weight.shape[1] < LANES else convolve(x, weight, padding)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            if min(weight.shape[:2]) < LANES:
                dx = torch.nn.grad.conv2d_input(x.shape, weight, dy, padding=ctx.padding)
            else:
                adjoint = weight.transpose(0, 1).flip(2, 3)
                dx = convolve(dy, adjoint, weight.shape[-1] - 1 - ctx.padding, backward=True)
        return dx, torch.nn.grad.conv2d_weight(x, weight.shape, dy, padding=ctx.padding), None


def conv2d(x, weight, bias=None, emb=None, residual=None, scale=1.0, padding=None):
    """edm_fast.ops.conv2d."""
    y = Convolution.apply(x, weight, weight.shape[-1] // 2 if padding is None else padding)
    for term in (
        None if bias is None else bias[:, None, None],
        None if emb is None else emb[:, :, None, None],
        residual,
    ):
        y = y if term is None else y + term
    return y if scale == 1.0 else y * scale


def exp(x):
    """The exponential inside torch's softmax; that of torch.exp is another library's, which rounds otherwise."""
    # the backward of log_softmax is dy - exp(y) sum(dy): minus exp(x) at the first of two entries, for dy = (0, 1)
    y = torch.stack([x, torch.zeros_like(x)], -1)
    return -torch._log_softmax_backward_data(torch.tensor([0.0, 1.0]).expand_as(y).contiguous(), y, -1, x.dtype)[..., 0]


def total(x):
    """Sums over the last axis: 16 lanes, then halves of them; fewer than 16 numbers one after the other."""
    size = x.shape[-1]
    if size < LANES:
        parts = x.unbind(-1)
        return sum(parts[1:], start=parts[0])
    assert size % LANES == 0
    rows = x.unflatten(-1, (-1, LANES)).unbind(-2)
    lanes = sum(rows[1:], start=rows[0])
    while lanes.shape[-1] > 1:
        lanes = lanes[..., : lanes.shape[-1] // 2] + lanes[..., lanes.shape[-1] // 2 :]
    return lanes[..., 0]


class AttentionWeights(torch.autograd.Function):
    """softmax(q^T k / sqrt(C)): q (N, C, Q), k (N, C, K) -> (N, Q, K); torch's softmax and its backward."""

    @staticmethod
    def forward(ctx, q, k):
        logits = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1]))
        e = exp(logits - logits.amax(-1, keepdim=True))
        w = e * (1 / total(e))[..., None]
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx, dw):
        q, k, w = ctx.saved_tensors
        db = w * (dw - total(w * dw)[..., None])
        root = math.sqrt(k.shape[1])
        return torch.bmm(k, db.mT) / root, torch.bmm(q, db) / root
