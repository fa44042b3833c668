"""The products of a convolution as one matrix product whose left matrix is never written: implicit GEMM.

    sum[m, o] = sum over taps t, channels c of x[pixel m shifted by t, c] weight[o, t, c]

Rows are the pixels of all images, columns the outputs. A tile reads x once for each tap: from the caches, since taps
share pixels. Which taps of a pixel lie inside of the image is a bit mask, found once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edm_fast.kernels._conv2d_prologue import _activated, _factors
from edm_fast.kernels._conv2d_tail import _finish_wide
from edm_fast.kernels._launch import INTERPRETED, in_turn

WIDEN = tl.constexpr(INTERPRETED)  # the interpreter takes bfloat16 for integers when it multiplies matrices


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if a.dtype.is_fp8():  # sums inside of the matrix units have 14 bits: out of them after each block
        return tl.dot(a, b, total, max_num_imprecise_acc=a.shape[1])
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _tile(tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile of this program: GROUP tiles of rows share each tile of weights while it is in the second-level cache."""
    index = tl.program_id(0)
    band = index // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - band * GROUP, GROUP)
    inner = index % (GROUP * tiles_n)
    return band * GROUP + inner % height, inner // height


@triton.jit
def _inside(top, left, height, width, KERNEL: tl.constexpr):
    """Bit t: tap t of the window at (top, left) lies in the image."""
    bits = tl.zeros_like(top)
    for t in tl.static_range(KERNEL * KERNEL):
        h, w = top + t // KERNEL, left + t % KERNEL
        bits |= ((h >= 0) & (h < height) & (w >= 0) & (w < width)).to(tl.int32) << t
    return bits


@triton.jit
def _operands(
    x_ptr,
    x_rows,
    weight_ptr,
    weight_rows,
    bits,
    first,
    width,
    channels,
    products,
    KERNEL: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    PADDED: tl.constexpr,
):
    """x (rows, BLOCK_K) and weight (BLOCK_K, columns) of the products from `first` on, the channels of these products,
    and what of x is inside of the image."""
    k = tl.arange(0, BLOCK_K)
    if EVEN:
        tap = first // channels
        start = first - tap * channels  # and not a remainder, of which Triton 3.6 does not see that it is aligned
        c = start + k
        shift = (tap // KERNEL * width + tap % KERNEL) * channels + start
        inside = ((bits >> tap) & 1)[:, None] != 0
        if PADDED:
            x = tl.load(x_ptr + shift + (x_rows[:, None] + k[None, :]), mask=inside, other=0.0)
        else:
            x = tl.load(x_ptr + shift + (x_rows[:, None] + k[None, :]))
        weight = tl.load(weight_ptr + first + (weight_rows[None, :] + k[:, None]))
    else:
        tap = tl.minimum(first + k, products - 1) // channels
        c = tl.minimum(first + k, products - 1) % channels
        shift = (tap // KERNEL * width + tap % KERNEL) * channels + c
        inside = (((bits[:, None] >> tap[None, :]) & 1) != 0) & (first + k < products)[None, :]
        x = tl.load(x_ptr + (x_rows[:, None] + shift[None, :]), mask=inside, other=0.0)
        weight = tl.load(
            weight_ptr + first + (weight_rows[None, :] + k[:, None]),
            mask=(first + k < products)[:, None],
            other=0.0,
        )
    return x, weight, c, inside


@triton.jit
def _store_part(
    total, partial_ptr, part, pixels, outputs, pitch, tile_m, tile_n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    m = tl.arange(0, BLOCK_M)
    o = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (tile_m * BLOCK_M + m < pixels)[:, None] & (o < outputs)[None, :]
    if pitch is None:
        pitch = outputs
    else:
        tl.debug_barrier()  # all warps have read x, which may lie where this is stored
    to = partial_ptr + (part * tl.cast(pixels, tl.int64) + tile_m * BLOCK_M) * pitch
    tl.store(to + (m[:, None] * pitch + o[None, :]), total, mask=mask)


# fmt: off
@triton.jit
def _conv2d_fwd(
    y_ptr,
    x_ptr,  # (N, height, width, channels)
    weight_ptr,  # (PHASES, outputs, KERNEL KERNEL, channels)
    rows_ptr, residual_ptr,
    affine_ptr,  # (2, N, channels) float32
    factors_ptr,  # (outputs,) float32, of float8; or None
    partial_ptr, sums_ptr, scale, clip, images, height, width,
    grid_height, grid_width, channels, outputs, padding,  # the grid: of the pixels summed for, in one phase
    x_pitch, pitch,  # from row to row of x and of what is stored, if each phase has an x of its own; else None
    steps,  # along K, of one split
    KERNEL: tl.constexpr, PHASES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, EVEN: tl.constexpr,  # BLOCK_K divides the channels: a step has one tap, and no mask
    ROWS: tl.constexpr, RESIDUAL: tl.constexpr, PART: tl.constexpr,  # see _finish
    AFFINE: tl.constexpr, SILU: tl.constexpr, ONE_IMAGE: tl.constexpr,  # see _factors, _activated
    PADDED: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,  # some taps lie outside; see _product, in_turn
):
    in_turn(EARLY)
    image_pixels = grid_height * grid_width
    pixels = images * image_pixels
    tile_m, tile_n = _tile(tl.cdiv(pixels, BLOCK_M), tl.cdiv(outputs, BLOCK_N), 8)
    phase, split = tl.program_id(1), tl.program_id(2)
    # rows and columns past the end compute with the last ones, and are not written
    m = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), pixels - 1)
    o = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), outputs - 1)
    image = m // image_pixels
    top = m % image_pixels // grid_width - padding
    left = m % grid_width - padding
    if PHASES == 4:
        top += phase // 2
        left += phase % 2
    bits = _inside(top, left, height, width, KERNEL)
    products = KERNEL * KERNEL * channels
    # 64 bits to where the tile begins; from there on 32 are enough, and take half of the registers
    x_first = tl.cast(tile_m * BLOCK_M // image_pixels, tl.int64) * height * width
    x_pitch = channels if x_pitch is None else x_pitch
    x_rows = ((image.to(tl.int64) * height + top) * width + left - x_first).to(tl.int32) * x_pitch
    x_ptr += (x_first + (0 if pitch is None else phase * tl.cast(images * height, tl.int64) * width)) * x_pitch
    weight_rows = o * products
    weight_ptr += phase * tl.cast(outputs, tl.int64) * products
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(split * steps * BLOCK_K, tl.minimum((split + 1) * steps * BLOCK_K, products), BLOCK_K):
        x, weight, c, inside = _operands(
            x_ptr, x_rows, weight_ptr, weight_rows, bits, first, width, channels, products,
            KERNEL, BLOCK_K, EVEN, PADDED,
        )
        if AFFINE:
            a, b = _factors(affine_ptr, image, c, channels, images, ONE_IMAGE)
            x = _activated(x, a, b, inside, SILU).to(x.dtype)
        total = _product(x, weight, total, PRECISION)
    if factors_ptr is not None:
        total *= tl.load(factors_ptr + o)[None, :]
    if SPLIT:
        part = split * PHASES + phase
        _store_part(total, partial_ptr, part, pixels, outputs, pitch, tile_m, tile_n, BLOCK_M, BLOCK_N)
    else:
        _finish_wide(
            total, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, clip, pixels, image_pixels, grid_width,
            outputs, tile_m, tile_n, phase, BLOCK_M, BLOCK_N, PHASES, ROWS, RESIDUAL, PART,
        )
# fmt: on


@triton.jit
def _conv2d_bwd_weight(
    partial_ptr,  # (splits, outputs, KERNEL KERNEL channels) float32
    dy_ptr,  # (N, GRID_HEIGHT, GRID_WIDTH, outputs)
    x_ptr,  # (N, height, width, channels)
    images,
    height,
    width,
    channels,
    outputs,
    padding,
    share,  # pixels of one split
    GRID_HEIGHT: tl.constexpr,
    GRID_WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,  # BLOCK_N divides the channels
    PRECISION: tl.constexpr,
):
    """Sums over `share` pixels of dy[pixel, o] x[pixel shifted by t, c], for a tile of outputs o and columns (t, c)."""
    columns = KERNEL * KERNEL * channels
    tile_m, tile_n = _tile(tl.cdiv(outputs, BLOCK_M), tl.cdiv(columns, BLOCK_N), 8)
    split = tl.program_id(1)
    o = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # of a tile with one tap, a tap: its masks are then of the pixels alone
    tap = tl.full((1,), tile_n * BLOCK_N // channels, tl.int32) if EVEN else j // channels
    down, right = tap // KERNEL - padding, tap % KERNEL - padding
    dy_columns = dy_ptr + o
    x_columns = x_ptr + (down.to(tl.int64) * width + right) * channels + (j - tap * channels)
    pixels = images * (GRID_HEIGHT * GRID_WIDTH)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(split * share, tl.minimum((split + 1) * share, pixels), BLOCK_K):
        p = first + tl.arange(0, BLOCK_K)
        h = p // GRID_WIDTH % GRID_HEIGHT
        w = p % GRID_WIDTH
        row = ((p // (GRID_HEIGHT * GRID_WIDTH)).to(tl.int64) * height + h) * width + w
        there = p < pixels
        mask = there[:, None] & (o < outputs)[None, :]
        dy = tl.load(dy_columns[None, :] + p.to(tl.int64)[:, None] * outputs, mask=mask, other=0.0)
        h = h[:, None] + down[None, :]
        w = w[:, None] + right[None, :]
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & there[:, None] & (j < columns)[None, :]
        x = tl.load(x_columns[None, :] + row[:, None] * channels, mask=inside, other=0.0)
        total = _product(tl.trans(dy), x, total, PRECISION)
    to = partial_ptr + (split * tl.cast(outputs, tl.int64) + o)[:, None] * columns + j[None, :]
    tl.store(to, total, mask=(o < outputs)[:, None] & (j < columns)[None, :])


@triton.jit
def _conv2d_reduce_weight(
    dweight_ptr,  # (outputs, channels, taps)
    partial_ptr,  # (splits, outputs, taps, channels) float32
    splits,
    size,
    channels,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the parts in their order, and put the taps last."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    total = tl.zeros((BLOCK,), tl.float32)
    source = partial_ptr + i
    for _ in range(splits):
        total += tl.load(source, mask=mask, other=0.0)
        source += size
    c, t = i % channels, i // channels % TAPS
    to = dweight_ptr + (i // (TAPS * channels) * channels + c) * TAPS + t
    tl.store(to, total.to(dweight_ptr.dtype.element_ty), mask=mask)
