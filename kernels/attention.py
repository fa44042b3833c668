"""attention in Triton: softmax(q^T k / sqrt(C)) v over pixels with a running maximum and sum (Dao et al. 2022).

Float16, bfloat16 or float32, sums in float32. Products of float32 run on TF32 matrix units where
torch.backends.cuda.matmul.allow_tf32 says so, and on plain multiply-adds otherwise. Heads of up to MAX_SIZE channels.

Where channels lie next to each other but q, k and v interleave with stride 3, a warp would fetch 3 times what it uses
for every block of queries; a copy that takes them apart costs one more read and write of qkv instead. An inference plan
has the convolution before it make them `apart`. Contiguous images are read as they are: their pixels are adjacent.

Work: forward 4 L^2 C operations for each head (L pixels), backward 14 L^2 C in two kernels without atomic additions, so
that results are the same in every run. Bytes: qkv and a once per block of queries, from the second-level cache.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from edm_fast.kernels import _attention_passes as passes
from edm_fast.kernels._launch import Variant, on_device

MAX_SIZE = 256  # channels of a head, as in the published networks: more do not fit into registers beside their sums
MAX_SIZE_FLOAT_BACKWARD = 128  # in float32, without matrix units


def blocks(channels: int, element_size: int, backward: bool) -> tuple[int, int, int, int]:
    """(BLOCK_Q, BLOCK_K, num_warps, num_stages) for heads padded to so many channels.

    The accumulators of a block, (BLOCK, channels) float32, one forward and two backward, take at most half of a
    program's registers.
    """
    if element_size == 4:
        return (16, 16, 8, 1) if backward or channels > 64 else (32, 32, 4, 1)
    if channels <= 64:
        return (64, 64, 8, 2) if backward else (128, 64, 8, 2)
    if channels <= 128:
        return (32, 64, 8, 2) if backward else (64, 32, 4, 2)
    return (32, 32, 8, 2) if backward else (64, 32, 8, 2)


def padded(size: int) -> int:
    """Channels of a head as the matrix units want them."""
    return max(16, triton.next_power_of_2(size))


def precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _split(qkv: torch.Tensor, heads: int, apart: bool) -> tuple[torch.Tensor, ...]:
    """q, k and v as (N, heads, HW, C) views; `apart`: channels in the order which, head, channel."""
    n, channels, h, w = qkv.shape
    size = channels // (3 * heads)
    if qkv.is_contiguous(memory_format=torch.channels_last):
        pixels = qkv.permute(0, 2, 3, 1).reshape(n, h * w, channels)
    else:
        pixels = qkv.contiguous().reshape(n, channels, h * w).mT
    if apart:
        return pixels.reshape(n, h * w, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    return pixels.reshape(n, h * w, heads, size, 3).permute(4, 0, 2, 1, 3).unbind(0)


def _together(parts: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Interleaved (N, 3 heads C, H, W), channels last, from (3, N, HW, heads, C)."""
    n, channels, h, w = like.shape
    return parts.permute(1, 2, 3, 4, 0).reshape(n, h, w, channels).permute(0, 3, 1, 2)


def _of_a(a: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, heads, HW, C) view of an image (N, heads C, H, W) without gaps."""
    n, channels, h, w = a.shape
    if a.is_contiguous(memory_format=torch.channels_last):
        return a.permute(0, 2, 3, 1).reshape(n, h * w, heads, channels // heads).transpose(1, 2)
    return a.reshape(n, heads, channels // heads, h * w).mT


def _prepared(qkv: torch.Tensor, heads: int, apart: bool) -> tuple[tuple[torch.Tensor, ...], bool]:
    """q, k, v, and whether they are a copy (3, N, HW, heads, C) that was taken apart."""
    q, k, v = _split(qkv, heads, apart)
    if apart or q.stride(3) != 3:
        return (q, k, v), False
    parts = torch.stack((q, k, v)).transpose(2, 3).contiguous()
    return parts.transpose(2, 3).unbind(0), True


def _common(q: torch.Tensor, a: torch.Tensor) -> tuple[Any, ...]:
    _, heads, pixels, size = q.shape
    return 1 / math.sqrt(size), heads, pixels, size, *q.stride(), *a.stride()


def forward(qkv: torch.Tensor, heads: int, apart: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """a (N, heads C, H, W) in the layout of qkv, and stats (2, N, heads HW) float32: of each query the largest logit
    and 1 / sum of exp(logit - largest). qkv (N, 3 heads C, H, W), interleaved or `apart`, channels last or contiguous.
    """
    n, channels, h, w = qkv.shape
    last = qkv.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    a = torch.empty((n, channels // 3, h, w), dtype=qkv.dtype, device=qkv.device, memory_format=layout)
    stats = torch.empty((2, n, heads * h * w), dtype=torch.float32, device=qkv.device)
    if a.numel() == 0:
        return a, stats
    (q, k, v), _ = _prepared(qkv, heads, apart)
    width = padded(q.shape[3])
    block_q, block_k, warps, stages = blocks(width, qkv.element_size(), False)
    with on_device(qkv):
        passes._attention_fwd[(triton.cdiv(h * w, block_q) * n * heads,)](
            a, stats, q, k, v, *_common(q, _of_a(a, heads)), CHANNELS=width, BLOCK_Q=block_q, BLOCK_K=block_k,
            PRECISION=precision(qkv.dtype), num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return a, stats


def backward(da: torch.Tensor, qkv: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, heads: int) -> torch.Tensor:
    """dqkv, interleaved, in the layout of qkv; da and a lie as qkv does."""
    n, _, h, w = qkv.shape
    dqkv = torch.empty_like(qkv)
    if dqkv.numel() == 0:
        return dqkv
    (q, k, v), copied = _prepared(qkv, heads, False)
    dparts = torch.empty((3, n, h * w, heads, q.shape[3]), dtype=q.dtype, device=q.device) if copied else None
    dq, dk, dv = _split(dqkv, heads, False) if dparts is None else dparts.transpose(2, 3).unbind(0)
    delta = torch.empty((n, heads * h * w), dtype=torch.float32, device=qkv.device)
    width = padded(q.shape[3])
    block_q, block_k, warps, stages = blocks(width, qkv.element_size(), True)
    of_a = _of_a(a, heads)
    common = _common(q, of_a)
    flags: dict[str, Any] = {"CHANNELS": width, "PRECISION": precision(qkv.dtype)}
    flags |= {"num_warps": warps, "num_stages": stages}
    pairs = n * heads
    with on_device(qkv):
        passes._attention_bwd_delta[(triton.cdiv(h * w, 32) * pairs,)](
            delta, da, a, *common[1:4], *of_a.stride(), CHANNELS=width, BLOCK_Q=32
        )
        # the larger block is the program's own: it is read once
        passes._attention_bwd_query[(triton.cdiv(h * w, block_k) * pairs,)](
            dq, q, k, v, da, stats, delta, *common, BLOCK_Q=block_k, BLOCK_K=block_q, **flags
        )
        passes._attention_bwd_key[(triton.cdiv(h * w, block_k) * pairs,)](
            dk, dv, q, k, v, da, stats, delta, *common, BLOCK_Q=block_q, BLOCK_K=block_k, **flags
        )
    return dqkv if dparts is None else _together(dparts, dqkv).contiguous(memory_format=torch.channels_last)


def _variant(kernel: Any, element: str, heads: int, size: int, pixels: int) -> Variant:
    """Heads of `size` channels in images channels last, q, k and v apart."""
    names, width, backward = kernel.arg_names, padded(size), kernel is not passes._attention_fwd
    block_q, block_k, warps, stages = blocks(width, 4 if element == "fp32" else 2, backward)
    if kernel is passes._attention_bwd_query:
        block_q, block_k = block_k, block_q
    single = ("stats_ptr", "delta_ptr")
    pointers = {n: "*fp32" if n in single else f"*{element}" for n in names if n.endswith("_ptr")}
    sizes = [n for n in names if n in ("heads", "pixels", "size") or "stride" in n]
    ones = {n: 1 for n in sizes if n.endswith("stride_c") or (n == "heads" and heads == 1)}
    constants = {"CHANNELS": width, "BLOCK_Q": block_q, "BLOCK_K": block_k, "PRECISION": "ieee", **ones}
    signature = {**pointers, "scale": "fp32", **{n: "i32" for n in sizes if n not in ones}}
    aligned = (*pointers, *(n for n in sizes if n not in ones and (n != "heads" or heads % 16 == 0)))
    return Variant(kernel, signature, constants, aligned, warps, stages, matrix_products=element != "fp32")


def variants() -> dict[str, Variant]:
    """DDPM++ and NCSN++ (one head of 256 channels), ADM (heads of 64), and 128 between them."""
    kernels = {"fwd": passes._attention_fwd, "bwd_q": passes._attention_bwd_query, "bwd_kv": passes._attention_bwd_key}
    layers = [("fp16", 1, 256, 256), ("fp16", 6, 64, 1024), ("bf16", 9, 64, 256), ("fp16", 4, 128, 256)]
    found = {}
    for name, kernel in kernels.items():
        single = ("fp32", 1, MAX_SIZE if name == "fwd" else MAX_SIZE_FLOAT_BACKWARD, 256)
        for element, heads, size, pixels in (*layers, single):
            found[f"{name}_{element}_c{size}_hw{pixels}"] = _variant(kernel, element, heads, size, pixels)
    return found
