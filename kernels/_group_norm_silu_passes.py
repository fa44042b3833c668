"""The passes over memory that make up group_norm_silu, forward and backward; launched by group_norm_silu.py.

x: (N, C, space) or, LAST, (N, space, C). A program makes a tile of BLOCK_P pixels x BLOCK_C channels.
"""

import triton
import triton.language as tl

from edm_fast.kernels._sigmoid import _sigmoid


@triton.jit
def _tile(chunk, c, space, channels, LAST: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets of a tile of pixels x channels in an image, and which of them are there."""
    p = chunk * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    if LAST:
        offsets = p.to(tl.int64) * channels + c[None, :]
    else:
        offsets = c[None, :].to(tl.int64) * space + p
    return offsets, (p < space) & (c[None, :] < channels)


@triton.jit
def _group_norm_silu_moments(
    partial_ptr, x_ptr, space, channels, chunks,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial (N, chunks, 2, C): mean and sum of squared deviations of each channel in a chunk of pixels."""
    chunk, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets, there = _tile(chunk, c, space, channels, LAST, BLOCK_P)
    x = tl.load(x_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    count = tl.minimum(space - chunk * BLOCK_P, BLOCK_P).to(tl.float32)
    mean = tl.sum(x, 0) / count
    off = tl.where(there, x - mean[None, :], 0.0)
    to = partial_ptr + (n * chunks + chunk) * 2 * channels + c
    tl.store(to, mean, mask=c < channels)
    tl.store(to + channels, tl.sum(off * off, 0), mask=c < channels)


@triton.jit
def _group_norm_silu_join(
    stats_ptr, partial_ptr, eps, space, channels, chunks, groups, pixels,
    BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """stats (2, N, groups): mean and 1 / sqrt(var + eps) of a group from the moments of its channels in the chunks of
    `pixels` pixels, the last of which may have fewer."""
    group, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    size = channels // groups
    j = tl.arange(0, BLOCK_G)[None, :]
    base = partial_ptr + n * chunks * 2 * channels + group * size + j
    total = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    for start in range(0, chunks, BLOCK_R):
        chunk = start + tl.arange(0, BLOCK_R)[:, None]
        there = (chunk < chunks) & (j < size)
        count = tl.minimum(space - chunk * pixels, pixels).to(tl.float32)
        total += count * tl.load(base + chunk.to(tl.int64) * 2 * channels, mask=there, other=0.0)
    mean = tl.sum(tl.sum(total, 1), 0) / (space * size).to(tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    for start in range(0, chunks, BLOCK_R):
        chunk = start + tl.arange(0, BLOCK_R)[:, None]
        there = (chunk < chunks) & (j < size)
        count = tl.minimum(space - chunk * pixels, pixels).to(tl.float32)
        row = base + chunk.to(tl.int64) * 2 * channels
        off = tl.load(row, mask=there, other=0.0) - mean
        squares += tl.where(there, count * off * off + tl.load(row + channels, mask=there, other=0.0), 0.0)
    var = tl.sum(tl.sum(squares, 1), 0) / (space * size).to(tl.float32)
    to = stats_ptr + n * groups + group
    tl.store(to, mean)
    tl.store(to + tl.num_programs(1) * groups, 1.0 / tl.sqrt_rn(var + eps))


@triton.jit
def _factors(
    weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, c, channels, scale_rows, shift_rows, there, ADAPTIVE: tl.constexpr
):
    """m = u a + b: a and b of each channel."""
    a = tl.load(weight_ptr + c, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias_ptr + c, mask=there, other=0.0).to(tl.float32)
    if ADAPTIVE:
        s = tl.load(scale_ptr + (n % scale_rows) * channels + c, mask=there, other=0.0).to(tl.float32) + 1.0
        a, b = a * s, b * s + tl.load(shift_ptr + (n % shift_rows) * channels + c, mask=there, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _group_norm_silu_fwd(
    y_ptr, x_ptr, stats_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    space, channels, groups, scale_rows, shift_rows,
    LAST: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y of given statistics."""
    chunk, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets, there = _tile(chunk, c, space, channels, LAST, BLOCK_P)
    own = c < channels
    at = stats_ptr + n * groups + c // (channels // groups)
    mean = tl.load(at, mask=own, other=0.0)
    rstd = tl.load(at + tl.num_programs(2) * groups, mask=own, other=0.0)
    a, b = _factors(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, c, channels, scale_rows, shift_rows, own, ADAPTIVE)
    x = tl.load(x_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    m = (x - mean[None, :]) * (rstd * a)[None, :] + b[None, :]
    if SILU:
        m *= _sigmoid(m)
    tl.store(y_ptr + n * space * channels + offsets, m.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _group_norm_silu_fwd_once(
    y_ptr, x_ptr, stats_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, eps,
    space, channels, groups, scale_rows, shift_rows,
    LAST: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """y and stats of BLOCK_G groups of SIZE channels, all pixels of an image at once."""
    n = tl.program_id(1).to(tl.int64)
    p = tl.arange(0, BLOCK_P)[:, None, None]
    g = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    c = g[None, :, None] * SIZE + tl.arange(0, SIZE)[None, None, :]  # (1, BLOCK_G, SIZE)
    own = c < channels
    there = (p < space) & own
    if LAST:
        offsets = p.to(tl.int64) * channels + c
    else:
        offsets = c.to(tl.int64) * space + p
    x = tl.load(x_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    count = (space * SIZE).to(tl.float32)
    mean = tl.sum(tl.sum(x, 2), 0) / count  # (BLOCK_G,)
    x = tl.where(there, x - mean[None, :, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(tl.sum(x * x, 2), 0) / count + eps)
    to = stats_ptr + n * groups + g
    tl.store(to, mean, mask=g < groups)
    tl.store(to + tl.num_programs(1) * groups, rstd, mask=g < groups)
    a, b = _factors(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, c, channels, scale_rows, shift_rows, own, ADAPTIVE)
    m = x * (rstd[None, :, None] * a) + b
    if SILU:
        m *= _sigmoid(m)
    tl.store(y_ptr + n * space * channels + offsets, m.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _slope(dy, u, a, b, SILU: tl.constexpr):
    """dm: the gradient of m = u a + b."""
    if SILU:
        m = u * a + b
        s = _sigmoid(m)
        dy = dy * (s * (1.0 + m * (1.0 - s)))
    return dy


@triton.jit
def _group_norm_silu_bwd_sums(
    partial_ptr, dy_ptr, x_ptr, stats_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    space, channels, groups, scale_rows, shift_rows, chunks,
    LAST: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial (N, chunks, 2, C): the sums A and B over a chunk of pixels."""
    chunk, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets, there = _tile(chunk, c, space, channels, LAST, BLOCK_P)
    own = c < channels
    at = stats_ptr + n * groups + c // (channels // groups)
    mean = tl.load(at, mask=own, other=0.0)
    rstd = tl.load(at + tl.num_programs(2) * groups, mask=own, other=0.0)
    a, b = _factors(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, c, channels, scale_rows, shift_rows, own, ADAPTIVE)
    x = tl.load(x_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    u = (x - mean[None, :]) * rstd[None, :]
    dm = tl.where(there, _slope(dy, u, a[None, :], b[None, :], SILU), 0.0)
    to = partial_ptr + (n * chunks + chunk) * 2 * channels + c
    tl.store(to, tl.sum(dm, 0), mask=own)
    tl.store(to + channels, tl.sum(dm * u, 0), mask=own)


@triton.jit
def _group_norm_silu_bwd_join(
    sums_ptr, means_ptr, partial_ptr, weight_ptr, scale_ptr, space, channels, chunks, groups, scale_rows,
    ADAPTIVE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """sums (N, 2, C): A and B of an image; means (2, N, groups): of du and of du u over a group."""
    group, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    size = channels // groups
    j = tl.arange(0, BLOCK_G)
    c, own = group * size + j, j < size
    base = partial_ptr + n * chunks * 2 * channels + c[None, :]
    sum_a = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    sum_b = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    for start in range(0, chunks, BLOCK_R):
        chunk = start + tl.arange(0, BLOCK_R)[:, None]
        there = (chunk < chunks) & own[None, :]
        row = base + chunk.to(tl.int64) * 2 * channels
        sum_a += tl.load(row, mask=there, other=0.0)
        sum_b += tl.load(row + channels, mask=there, other=0.0)
    total_a, total_b = tl.sum(sum_a, 0), tl.sum(sum_b, 0)
    to = sums_ptr + n * 2 * channels + c
    tl.store(to, total_a, mask=own)
    tl.store(to + channels, total_b, mask=own)
    a = tl.load(weight_ptr + c, mask=own, other=0.0).to(tl.float32)
    if ADAPTIVE:
        a *= tl.load(scale_ptr + (n % scale_rows) * channels + c, mask=own, other=0.0).to(tl.float32) + 1.0
    count = (space * size).to(tl.float32)
    to = means_ptr + n * groups + group
    tl.store(to, tl.sum(a * total_a, 0) / count)
    tl.store(to + tl.num_programs(1) * groups, tl.sum(a * total_b, 0) / count)


@triton.jit
def _group_norm_silu_bwd(
    dx_ptr, dy_ptr, x_ptr, stats_ptr, means_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    space, channels, groups, scale_rows, shift_rows,
    LAST: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx of given means over the groups."""
    chunk, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets, there = _tile(chunk, c, space, channels, LAST, BLOCK_P)
    own = c < channels
    at, all_groups = n * groups + c // (channels // groups), tl.num_programs(2) * groups
    mean = tl.load(stats_ptr + at, mask=own, other=0.0)
    rstd = tl.load(stats_ptr + all_groups + at, mask=own, other=0.0)
    of_du = tl.load(means_ptr + at, mask=own, other=0.0)
    of_du_u = tl.load(means_ptr + all_groups + at, mask=own, other=0.0)
    a, b = _factors(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, c, channels, scale_rows, shift_rows, own, ADAPTIVE)
    x = tl.load(x_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + n * space * channels + offsets, mask=there, other=0.0).to(tl.float32)
    u = (x - mean[None, :]) * rstd[None, :]
    du = _slope(dy, u, a[None, :], b[None, :], SILU) * a[None, :]
    dx = rstd[None, :] * (du - of_du[None, :] - u * of_du_u[None, :])
    tl.store(dx_ptr + n * space * channels + offsets, dx.to(dx_ptr.dtype.element_ty), mask=there)
