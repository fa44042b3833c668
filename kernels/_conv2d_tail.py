"""What comes after the products of a convolution: the tail y = (sum + rows + residual) scale, perhaps kept within
+-clip, the statistics of the next norm, and the sum of the parts of a split sum. Backward: the gradient of sum and
residual, and that of rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the next norm asks for: its number of groups and its eps."""

    groups: int
    eps: float


def options(rows: torch.Tensor | None, residual: torch.Tensor | None) -> dict[str, Any]:
    """What the tail adds, as its kernels are told."""
    return {"ROWS": 0 if rows is None else 1 if rows.shape[0] == 1 else 2, "RESIDUAL": residual is not None}


def moments(y: torch.Tensor, statistics: Statistics, sums: torch.Tensor | None = None, part: int = 0) -> torch.Tensor:
    """Mean and rstd (2, N, groups) of y from the sums of its parts."""
    stats = torch.empty((2, y.shape[0], statistics.groups), dtype=torch.float32, device=y.device)
    if sums is not None:
        group = y.shape[1] // statistics.groups
        sizes = (sums.shape[1], part, y.shape[1], group)
        block = triton.next_power_of_2(group)
        _conv2d_statistics[stats.shape[1:]](*stats, sums, statistics.eps, *sizes, BLOCK_R=32, BLOCK_C=block)
    return stats


@triton.jit
def _target(m, image_pixels, width, high, wide, SIDE: tl.constexpr):
    """First pixel of the output that pixel m of the grid is: of an output of high x wide pixels it has SIDE x SIDE, and
    phase SIDE a + b is a rows below and b columns to the right."""
    if SIDE == 1:
        return m.to(tl.int64)
    rows = (m // image_pixels).to(tl.int64) * high + m % image_pixels // width * SIDE
    return rows * wide + m % width * SIDE


@triton.jit
def _rows(rows_ptr, m, o, mask, first, image_pixels, outputs, ROWS: tl.constexpr):
    """What is added to all pixels m of an image, float32; ROWS: 0 nothing, 1 one row for all images, 2 one for each."""
    if ROWS == 0:
        rows = 0.0
    elif ROWS == 1:
        rows = tl.load(rows_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    else:
        image = first // image_pixels  # of the first pixel
        own = (m // image_pixels - image)[:, None] * outputs + o[None, :]
        rows = tl.load(rows_ptr + tl.cast(image, tl.int64) * outputs + own, mask=mask, other=0.0).to(tl.float32)
    return rows


@triton.jit
def _write(total, y_ptr, residual_ptr, first, offset, mask, scale, clip, RESIDUAL: tl.constexpr):
    """y = (total + residual) scale, within +-clip if there is one, as it was rounded and written. 64 bits to where a
    tile begins, 32 from there on."""
    if RESIDUAL:
        total += tl.load(residual_ptr + first + offset, mask=mask, other=0.0).to(tl.float32)
    total *= scale
    if clip is not None:
        total = tl.where(tl.abs(total) > clip, tl.where(total > 0, clip, -clip), total)
    y = total.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + first + offset, y, mask=mask)
    return y


@triton.jit
def _write_sums(
    values,  # tuple of (BLOCK_M, BLOCK_N)
    COUNT: tl.constexpr,  # of them
    sums_ptr,
    o,
    tile_m,
    pixels,
    image_pixels,
    outputs,
    phase,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PHASES: tl.constexpr,
    PART: tl.constexpr,
):
    """(sum, sum of squares about the mean) of each channel over each PART rows of all the values."""
    total = values[0].to(tl.float32)
    for index in tl.static_range(1, COUNT):
        total += values[index].to(tl.float32)
    sums = tl.sum(tl.reshape(total, (BLOCK_M // PART, PART, BLOCK_N)), 1)
    mean = (sums / (PART * COUNT))[:, None, :]
    squares = tl.zeros_like(sums)
    for index in tl.static_range(COUNT):
        centred = tl.reshape(values[index].to(tl.float32), (BLOCK_M // PART, PART, BLOCK_N)) - mean
        squares += tl.sum(centred * centred, 1)
    part = tile_m * (BLOCK_M // PART) + tl.arange(0, BLOCK_M // PART)
    parts = image_pixels // PART  # of an image, in one phase
    row = (part // parts).to(tl.int64) * (PHASES * parts) + phase * parts + part % parts
    to = sums_ptr + row[:, None] * (2 * outputs) + o[None, :]
    written = (part < pixels // PART)[:, None] & (o < outputs)[None, :]
    tl.store(to, sums, mask=written)
    tl.store(to + outputs, squares, mask=written)


@triton.jit
def _finish(
    total,  # (BLOCK_M, BLOCK_N) float32
    y_ptr,
    rows_ptr,
    residual_ptr,
    sums_ptr,
    scale,
    clip,
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
    """Write y, of 4 phases at twice the width and height of the grid; PART > 0: also `_write_sums` of it."""
    SIDE: tl.constexpr = 2 if PHASES == 4 else 1
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < pixels)[:, None] & (o < outputs)[None, :]
    total += _rows(rows_ptr, m, o, mask, tile_m * BLOCK_M, image_pixels, outputs, ROWS)
    high, wide = image_pixels // width * SIDE, width * SIDE
    first = _target(tile_m * BLOCK_M, image_pixels, width, high, wide, SIDE)
    offset = (_target(m, image_pixels, width, high, wide, SIDE) - first).to(tl.int32)[:, None] * outputs + o[None, :]
    first = (first + phase // SIDE * wide + phase % SIDE) * outputs
    y = _write(total, y_ptr, residual_ptr, first, offset, mask, scale, clip, RESIDUAL)
    # fmt: off
    if PART > 0:
        _write_sums(
            (y,), 1, sums_ptr, o, tile_m, pixels, image_pixels, outputs, phase, BLOCK_M, BLOCK_N, PHASES, PART
        )
    # fmt: on


@triton.jit
def _finish_wide(
    total,
    y_ptr,
    rows_ptr,
    residual_ptr,
    sums_ptr,
    scale,
    clip,
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
            left, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, clip, pixels, image_pixels, width,
            outputs, tile_m, 2 * tile_n, phase, BLOCK_M, 128, PHASES, ROWS, RESIDUAL, PART,
        )
        _finish(
            right, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, clip, pixels, image_pixels, width,
            outputs, tile_m, 2 * tile_n + 1, phase, BLOCK_M, 128, PHASES, ROWS, RESIDUAL, PART,
        )
    else:
        _finish(
            total, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, clip, pixels, image_pixels, width,
            outputs, tile_m, tile_n, phase, BLOCK_M, BLOCK_N, PHASES, ROWS, RESIDUAL, PART,
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
    clip,
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
        total, y_ptr, rows_ptr, residual_ptr, sums_ptr, scale, clip, pixels, image_pixels, width,
        outputs, tile_m, tile_n, phase, BLOCK_M, BLOCK_N, PHASES, ROWS, RESIDUAL, PART,
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
    count = tl.cast(parts * part * group, tl.float32)
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
def _conv2d_tail_bwd(
    scaled_ptr,  # as dy; None: it is not wanted
    sums_ptr,  # (N, parts, outputs) float32
    dy_ptr,  # (N, image_pixels, outputs)
    scale,
    parts,
    share,  # pixels of a part
    image_pixels,
    outputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dy scale, and its sums over each part of an image."""
    image, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    o = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = image.to(tl.int64) * image_pixels * outputs
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(part * share, tl.minimum((part + 1) * share, image_pixels), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < image_pixels)[:, None] & (o < outputs)[None, :]
        at = first + tl.cast(start, tl.int64) * outputs
        offset = (m - start)[:, None] * outputs + o[None, :]
        dy = tl.load(dy_ptr + at + offset, mask=mask, other=0.0).to(tl.float32) * scale
        if scaled_ptr is not None:
            tl.store(scaled_ptr + at + offset, dy.to(scaled_ptr.dtype.element_ty), mask=mask)
        total += dy
    tl.store(sums_ptr + tl.program_id(0).to(tl.int64) * outputs + o, tl.sum(total, 0), mask=o < outputs)
