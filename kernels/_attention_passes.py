"""The kernels of attention: forward, and the gradients of q, and of k and v. Launched by attention.py.

All of q, k, v, a and their gradients are read through strides: of the image, head, pixel and channel. A program belongs
to one image and head (`pair` = image heads + head). Softmax in float32, in powers of 2.
"""

import triton
import triton.language as tl

from edm_fast.kernels._launch import INTERPRETED

LOG2_E = tl.constexpr(1.4426950408889634)
WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of bfloat16; its products are exact in float32


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    if WIDEN and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _place(pixels, BLOCK: tl.constexpr):
    """The first pixel of a program's block, its pair, and the number of pairs; on one axis, as others are short."""
    blocks, program = tl.cdiv(pixels, BLOCK), tl.program_id(0)
    return program % blocks * BLOCK, program // blocks, tl.num_programs(0) // blocks


@triton.jit
def _start(ptr, pair, heads, stride_n, stride_h):
    return ptr + (pair // heads).to(tl.int64) * stride_n + (pair % heads).to(tl.int64) * stride_h


@triton.jit
def _rows(ptr, first, pixels, size, stride_p, stride_c, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """(BLOCK, CHANNELS): pixels from `first` on, zeros beyond the image and the head's channels."""
    p, c = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, CHANNELS)[None, :]
    there = (p < pixels) & (c < size)
    return tl.load(ptr + p.to(tl.int64) * stride_p + c.to(tl.int64) * stride_c, mask=there, other=0.0)


@triton.jit
def _store_rows(ptr, value, first, pixels, size, stride_p, stride_c, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    p, c = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, CHANNELS)[None, :]
    to = ptr + p.to(tl.int64) * stride_p + c.to(tl.int64) * stride_c
    tl.store(to, value.to(ptr.dtype.element_ty), mask=(p < pixels) & (c < size))


@triton.jit
def _attention_fwd(
    a_ptr, stats_ptr, q_ptr, k_ptr, v_ptr, scale, heads, pixels, size,
    stride_n, stride_h, stride_p, stride_c, a_stride_n, a_stride_h, a_stride_p, a_stride_c,
    CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a, and stats (2, pairs, pixels): of each query the largest logit and 1 / sum of exp(logit - largest)."""
    first, pair, pairs = _place(pixels, BLOCK_Q)
    q_ptr = _start(q_ptr, pair, heads, stride_n, stride_h)
    k_ptr = _start(k_ptr, pair, heads, stride_n, stride_h)
    v_ptr = _start(v_ptr, pair, heads, stride_n, stride_h)
    q = _rows(q_ptr, first, pixels, size, stride_p, stride_c, BLOCK_Q, CHANNELS)
    largest = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    a = tl.zeros((BLOCK_Q, CHANNELS), tl.float32)
    for start in range(0, pixels, BLOCK_K):
        k = _rows(k_ptr, start, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
        logits = _dot(q, tl.trans(k), None, PRECISION) * scale
        logits = tl.where(start + tl.arange(0, BLOCK_K)[None, :] < pixels, logits, -float("inf"))
        new = tl.maximum(largest, tl.max(logits, 1))
        w = tl.exp2((logits - new[:, None]) * LOG2_E)
        shrink = tl.exp2((largest - new) * LOG2_E)
        total = total * shrink + tl.sum(w, 1)
        v = _rows(v_ptr, start, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
        a = _dot(w.to(v.dtype), v, a * shrink[:, None], PRECISION)
        largest = new
    a_ptr = _start(a_ptr, pair, heads, a_stride_n, a_stride_h)
    _store_rows(a_ptr, a / total[:, None], first, pixels, size, a_stride_p, a_stride_c, BLOCK_Q, CHANNELS)
    p = first + tl.arange(0, BLOCK_Q)
    to = stats_ptr + pair.to(tl.int64) * pixels + p
    tl.store(to, largest, mask=p < pixels)
    tl.store(to + pairs.to(tl.int64) * pixels, 1.0 / total, mask=p < pixels)


@triton.jit
def _attention_bwd_delta(
    delta_ptr, da_ptr, a_ptr, heads, pixels, size, a_stride_n, a_stride_h, a_stride_p, a_stride_c,
    CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """delta (pairs, pixels): sum_c da a of each query."""
    first, pair, pairs = _place(pixels, BLOCK_Q)
    da = _rows(
        _start(da_ptr, pair, heads, a_stride_n, a_stride_h), first, pixels, size, a_stride_p, a_stride_c,
        BLOCK_Q, CHANNELS,
    )  # fmt: skip
    a = _rows(
        _start(a_ptr, pair, heads, a_stride_n, a_stride_h), first, pixels, size, a_stride_p, a_stride_c,
        BLOCK_Q, CHANNELS,
    )  # fmt: skip
    p = first + tl.arange(0, BLOCK_Q)
    sums = tl.sum(da.to(tl.float32) * a.to(tl.float32), 1)
    tl.store(delta_ptr + pair.to(tl.int64) * pixels + p, sums, mask=p < pixels)


@triton.jit
def _of_queries(ptr, pair, first, pixels, BLOCK: tl.constexpr):
    p = first + tl.arange(0, BLOCK)
    return tl.load(ptr + pair.to(tl.int64) * pixels + p, mask=p < pixels, other=0.0)


@triton.jit
def _attention_bwd_query(
    dq_ptr, q_ptr, k_ptr, v_ptr, da_ptr, stats_ptr, delta_ptr, scale, heads, pixels, size,
    stride_n, stride_h, stride_p, stride_c, a_stride_n, a_stride_h, a_stride_p, a_stride_c,
    CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq = scale sum_k ds k, ds = w (da v - delta)."""
    first, pair, pairs = _place(pixels, BLOCK_Q)
    q_ptr = _start(q_ptr, pair, heads, stride_n, stride_h)
    k_ptr = _start(k_ptr, pair, heads, stride_n, stride_h)
    v_ptr = _start(v_ptr, pair, heads, stride_n, stride_h)
    da_ptr = _start(da_ptr, pair, heads, a_stride_n, a_stride_h)
    q = _rows(q_ptr, first, pixels, size, stride_p, stride_c, BLOCK_Q, CHANNELS)
    da = _rows(da_ptr, first, pixels, size, a_stride_p, a_stride_c, BLOCK_Q, CHANNELS)
    largest = _of_queries(stats_ptr, pair, first, pixels, BLOCK_Q)
    inverse = _of_queries(stats_ptr + pairs.to(tl.int64) * pixels, pair, first, pixels, BLOCK_Q)
    delta = _of_queries(delta_ptr, pair, first, pixels, BLOCK_Q)
    dq = tl.zeros((BLOCK_Q, CHANNELS), tl.float32)
    for start in range(0, pixels, BLOCK_K):
        k = _rows(k_ptr, start, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
        logits = _dot(q, tl.trans(k), None, PRECISION) * scale
        w = tl.exp2((logits - largest[:, None]) * LOG2_E) * inverse[:, None]
        w = tl.where(start + tl.arange(0, BLOCK_K)[None, :] < pixels, w, 0.0)
        v = _rows(v_ptr, start, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
        ds = w * (_dot(da, tl.trans(v), None, PRECISION) - delta[:, None])
        dq = _dot(ds.to(k.dtype), k, dq, PRECISION)
    dq_ptr = _start(dq_ptr, pair, heads, stride_n, stride_h)
    _store_rows(dq_ptr, dq * scale, first, pixels, size, stride_p, stride_c, BLOCK_Q, CHANNELS)


@triton.jit
def _attention_bwd_key(
    dk_ptr, dv_ptr, q_ptr, k_ptr, v_ptr, da_ptr, stats_ptr, delta_ptr, scale, heads, pixels, size,
    stride_n, stride_h, stride_p, stride_c, a_stride_n, a_stride_h, a_stride_p, a_stride_c,
    CHANNELS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk = scale sum_q ds q and dv = sum_q w da."""
    first, pair, pairs = _place(pixels, BLOCK_K)
    q_ptr = _start(q_ptr, pair, heads, stride_n, stride_h)
    k_ptr = _start(k_ptr, pair, heads, stride_n, stride_h)
    v_ptr = _start(v_ptr, pair, heads, stride_n, stride_h)
    da_ptr = _start(da_ptr, pair, heads, a_stride_n, a_stride_h)
    k = _rows(k_ptr, first, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
    v = _rows(v_ptr, first, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
    inverse_ptr = stats_ptr + pairs.to(tl.int64) * pixels
    dk = tl.zeros((BLOCK_K, CHANNELS), tl.float32)
    dv = tl.zeros((BLOCK_K, CHANNELS), tl.float32)
    for start in range(0, pixels, BLOCK_Q):
        q = _rows(q_ptr, start, pixels, size, stride_p, stride_c, BLOCK_Q, CHANNELS)
        da = _rows(da_ptr, start, pixels, size, a_stride_p, a_stride_c, BLOCK_Q, CHANNELS)
        largest = _of_queries(stats_ptr, pair, start, pixels, BLOCK_Q)
        inverse = _of_queries(inverse_ptr, pair, start, pixels, BLOCK_Q)
        delta = _of_queries(delta_ptr, pair, start, pixels, BLOCK_Q)
        logits = _dot(k, tl.trans(q), None, PRECISION) * scale  # (keys, queries)
        # queries beyond the image have inverse 0
        w = tl.exp2((logits - largest[None, :]) * LOG2_E) * inverse[None, :]
        w = tl.where(start + tl.arange(0, BLOCK_Q)[None, :] < pixels, w, 0.0)
        dv = _dot(w.to(da.dtype), da, dv, PRECISION)
        ds = w * (_dot(v, tl.trans(da), None, PRECISION) - delta[None, :])
        dk = _dot(ds.to(q.dtype), q, dk, PRECISION)
    dk_ptr = _start(dk_ptr, pair, heads, stride_n, stride_h)
    dv_ptr = _start(dv_ptr, pair, heads, stride_n, stride_h)
    _store_rows(dk_ptr, dk * scale, first, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
    _store_rows(dv_ptr, dv, first, pixels, size, stride_p, stride_c, BLOCK_K, CHANNELS)
