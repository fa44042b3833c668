"""What comes before and after the products of a convolution: the tail y = (sum + rows + residual) scale, the statistics
of the next norm, the sum of the parts of a split sum, and the norm of the input as one factor and one summand."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _target(m, image_pixels, width, phase, PHASES: tl.constexpr):
    """Pixel of the output that pixel m of the grid is; with 4 phases the output is twice as wide and high, and phase
    2 a + b has the pixels (2 h + a, 2 w + b)."""
    if PHASES == 1:
        return m.to(tl.int64)
    image = (m // image_pixels).to(tl.int64)
    h = m % image_pixels // width
    w = m % width
    return image * image_pixels * 4 + (2 * h + phase // 2) * (2 * width) + 2 * w + phase % 2


@triton.jit
def _finish(
    total,  # (BLOCK_M, BLOCK_N) float32
    y_ptr,
    rows_ptr,
    residual_ptr,
    sums_ptr,
    scale,
    pixels,
    image_pixels,
    width,
    outputs,
    tile_m,
    tile_n,
    phase,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PHASES: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PART: tl.constexpr,
):
    """Write y; ROWS: 0 none, 1 one row for all images, 2 one for each; PART > 0: also (sum, sum of squares about the
    mean) of each channel over each PART pixels, of y as it was rounded."""
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < pixels)[:, None] & (o < outputs)[None, :]
    if ROWS == 1:
        total += tl.load(rows_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    if ROWS == 2:
        image = (m // image_pixels).to(tl.int64)
        total += tl.load(rows_ptr + image[:, None] * outputs + o[None, :], mask=mask, other=0.0).to(tl.float32)
    # 64 bits to where the tile begins, 32 from there on
    first = _target(tile_m * BLOCK_M, image_pixels, width, phase, PHASES)
    offset = (_target(m, image_pixels, width, phase, PHASES) - first).to(tl.int32)[:, None] * outputs + o[None, :]
    first *= outputs
    if RESIDUAL:
        total += tl.load(residual_ptr + first + offset, mask=mask, other=0.0).to(tl.float32)
    y = (total * scale).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + first + offset, y, mask=mask)
    if PART > 0:
        value = tl.reshape(y.to(tl.float32), (BLOCK_M // PART, PART, BLOCK_N))
        sums = tl.sum(value, 1)
        centred = value - (sums / PART)[:, None, :]
        squares = tl.sum(centred * centred, 1)
        part = tile_m * (BLOCK_M // PART) + tl.arange(0, BLOCK_M // PART)
        parts = image_pixels // PART  # of an image, in one phase
        row = (part // parts).to(tl.int64) * (PHASES * parts) + phase * parts + part % parts
        to = sums_ptr + row[:, None] * (2 * outputs) + o[None, :]
        written = (part < pixels // PART)[:, None] & (o < outputs)[None, :]
        tl.store(to, sums, mask=written)
        tl.store(to + outputs, squares, mask=written)


@triton.jit
def _finish_wide(
    total,
    y_ptr,
    rows_ptr,
    residual_ptr,
    sums_ptr,
    scale,
    pixels,
    image_pixels,
    width,
    outputs,
    tile_m,
    tile_n,
    phase,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PHASES: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PART: tl.constexpr,
):
    """`_finish` in halves of 128 columns: sums, residual and results of 256 at once do not fit the registers."""
    # fmt: off
    if BLOCK_N == 256:
        left, right = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, 128)), (0, 2, 1)))
        _finish(
            left, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, pixels, image_pixels, width, outputs,
            tile_m, 2 * tile_n, phase, BLOCK_M, 128, PHASES, ROWS, RESIDUAL, PART,
        )
        _finish(
            right, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, pixels, image_pixels, width, outputs,
            tile_m, 2 * tile_n + 1, phase, BLOCK_M, 128, PHASES, ROWS, RESIDUAL, PART,
        )
    else:
        _finish(
            total, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, pixels, image_pixels, width, outputs,
            tile_m, tile_n, phase, BLOCK_M, BLOCK_N, PHASES, ROWS, RESIDUAL, PART,
        )
    # fmt: on


@triton.jit
def _conv2d_reduce(
    y_ptr,
    partial_ptr,  # (splits, phases, pixels, outputs) float32
    rows_ptr,
    residual_ptr,
    sums_ptr,
    scale,
    splits,
    pixels,
    image_pixels,
    width,
    outputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PHASES: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PART: tl.constexpr,
):
    """Sum the parts of a split sum, in their order, and finish."""
    tile_m, tile_n, phase = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < pixels)[:, None] & (o < outputs)[None, :]
    stride = tl.cast(pixels, tl.int64) * outputs
    offset = phase * stride + m.to(tl.int64)[:, None] * outputs + o[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(splits):
        total += tl.load(partial_ptr + offset, mask=mask, other=0.0)
        offset += PHASES * stride
    # fmt: off
    _finish(
        total, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, pixels, image_pixels, width, outputs,
        tile_m, tile_n, phase, BLOCK_M, BLOCK_N, PHASES, ROWS, RESIDUAL, PART,
    )
    # fmt: on


@triton.jit
def _conv2d_statistics(
    mean_ptr,  # (N, groups) float32
    rstd_ptr,
    sums_ptr,  # (N, parts, 2, outputs) float32
    eps,
    parts,
    part,  # pixels each
    outputs,
    group,  # channels each
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and 1 / sqrt(variance + eps) of each group of each image, from the sums of its channels and parts."""
    image, index = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, BLOCK_C)
    source = sums_ptr + image.to(tl.int64) * parts * 2 * outputs + index * group + c[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, parts, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        mask = (r < parts)[:, None] & (c < group)[None, :]
        total += tl.load(source + r[:, None] * (2 * outputs), mask=mask, other=0.0)
    count = (parts * part * group).to(tl.float32)
    mean = tl.sum(total) / count
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, parts, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        mask = (r < parts)[:, None] & (c < group)[None, :]
        at = source + r[:, None] * (2 * outputs)
        # about the mean of all: about the part's own, and that one's distance from it (Chan et al. 1979)
        distance = tl.load(at, mask=mask, other=0.0) / part - mean
        squares = tl.load(at + outputs, mask=mask, other=0.0) + part * distance * distance
        total += tl.where(mask, squares, 0.0)
    to = image.to(tl.int64) * tl.num_programs(1) + index
    tl.store(mean_ptr + to, mean)
    tl.store(rstd_ptr + to, tl.rsqrt(tl.sum(total) / count + eps))


@triton.jit
def _conv2d_affine(
    affine_ptr,  # (2, N, C) float32
    mean_ptr,  # (N, groups) float32
    rstd_ptr,
    weight_ptr,  # (C,)
    bias_ptr,
    scale_ptr,  # (N, C)
    shift_ptr,
    images,
    channels,
    group,  # channels each
    pitch,  # from image to image in scale and shift
    BLOCK_C: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """The norm as x a + b: a = weight rstd (1 + scale), b = (bias - mean weight rstd) (1 + scale) + shift."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    at = image * (channels // group) + c // group
    rstd = tl.load(rstd_ptr + at, mask=mask, other=0.0)
    a = tl.load(weight_ptr + c, mask=mask, other=0.0).to(tl.float32) * rstd
    b = tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32) - tl.load(mean_ptr + at, mask=mask, other=0.0) * a
    to = image * channels + c
    if ADAPTIVE:
        own = image * pitch + c
        factor = 1 + tl.load(scale_ptr + own, mask=mask, other=0.0).to(tl.float32)
        a *= factor
        b = b * factor + tl.load(shift_ptr + own, mask=mask, other=0.0).to(tl.float32)
    tl.store(affine_ptr + to, a, mask=mask)
    tl.store(affine_ptr + tl.cast(images, tl.int64) * channels + to, b, mask=mask)
