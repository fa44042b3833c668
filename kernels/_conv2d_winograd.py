"""3x3 convolution by Winograd's F(4x4, 3x3) in float16: 36 products for 16 outputs in place of 144 (Lavin & Gray 2016).

    y = A^T [sum over channels of (G w G^T) * (B^T x B)] A            x: tiles of 6x6 pixels, which overlap; y: of 4x4

Three kernels: the transform of x, after a norm and SiLU if there is a `Prologue`; 36 matrix products, one for each
place in a tile, by the products of the direct convolution as 1x1 convolutions or by torch.bmm; the transform back with
the tail. Transforms are taken in float32. What lies between the kernels is float16 and 2.25 times as large as the
images, so that a few images at a time go through all three and it stays in the second-level cache.

Error at 256 channels, relative and rms: 1.7e-3 (1.4e-3 if products were not rounded to float16); direct convolution in
float16 or TF32 3e-4, in bfloat16 2.9e-3. The points 0, 11/16, -11/16, 3/2, -3/2 and infinity err least of those with
short fractions: 0, 1, -1, 2, -2 have 5.5e-3. Rows of B^T sum to at most 5.5 in magnitude, and weights are scaled for
each output so that theirs sum to at most 1: images up to 2,000 cannot overflow.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import triton
import triton.language as tl

from edm_fast.kernels import _conv2d_products
from edm_fast.kernels._conv2d_blocks import blocks
from edm_fast.kernels._conv2d_prologue import Factor, Prologue, _activated, _factors, affine_of, images_last
from edm_fast.kernels._conv2d_tail import Statistics, _rows, _target, _write, _write_sums, moments, options
from edm_fast.kernels._launch import on_device

SIDE, SPAN = 4, 6  # of a tile of y and of x
NEAR, FAR = Fraction(11, 16), Fraction(3, 2)
POINTS = (Fraction(0), NEAR, -NEAR, FAR, -FAR)  # and infinity
P, Q = tl.constexpr(float(NEAR)), tl.constexpr(float(FAR))  # their powers are exact in float32, too
DTYPE = torch.float16
CACHE_BYTES = 32 * 2**20  # for tiles and products: 5/8 of an H200's 50 MB, the rest is for weights and images
ELEMENTS = 512  # tiles times channels of a program: four for each thread, as 36 values of each are in registers


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (O, C, 3, 3) -> (36, O, C) float16, and a power of two (O,) float32 by which products are multiplied."""
    rows = []
    for point in POINTS:
        divisor = math.prod(point - other for other in POINTS if other != point)
        rows.append([float(point**k / divisor) for k in range(3)])
    g = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device=weight.device)
    tiles = torch.einsum("ik,ockl,jl->ijoc", g, weight.double(), g).flatten(0, 1)
    _, exponent = torch.frexp(tiles.abs().sum(2).amax(0))
    factors = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent)
    return (tiles / factors[:, None]).to(DTYPE).contiguous(), factors.float()


@triton.jit
def _to_points(x):
    """B^T x of a tuple of 6: the values at the points of the polynomials that are multiplied."""
    even_p, odd_p = x[4] - x[2] * (Q * Q), x[3] - x[1] * (Q * Q)
    even_q, odd_q = x[4] - x[2] * (P * P), x[3] - x[1] * (P * P)
    first = x[4] - x[2] * (P * P + Q * Q) + x[0] * (P * P * Q * Q)
    last = x[5] - x[3] * (P * P + Q * Q) + x[1] * (P * P * Q * Q)
    return first, even_p + odd_p * P, even_p - odd_p * P, even_q + odd_q * Q, even_q - odd_q * Q, last


@triton.jit
def _from_points(v):
    """A^T v of a tuple of 6: 4 sums of values at the points with powers of them."""
    even_p, odd_p, even_q, odd_q = v[1] + v[2], v[1] - v[2], v[3] + v[4], v[3] - v[4]
    second, third = odd_p * P + odd_q * Q, even_p * (P * P) + even_q * (Q * Q)
    return v[0] + even_p + even_q, second, third, odd_p * (P * P * P) + odd_q * (Q * Q * Q) + v[5]


@triton.jit
def _row(columns, i: tl.constexpr):
    """Entry i of each of 6 tuples."""
    return columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]


@triton.jit
def _winograd_input(
    tiles_ptr,  # (36, images tiles_high tiles_wide, channels)
    x_ptr,  # (images, height, width, channels)
    affine_ptr,
    affine_images,
    images,
    height,
    width,
    tiles_high,
    tiles_wide,
    channels,
    padding,
    SILU: tl.constexpr,
    EVEN: tl.constexpr,  # BLOCK_N divides the channels
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """B^T x B of BLOCK_M tiles and BLOCK_N channels."""
    count = images * tiles_high * tiles_wide
    first = tl.program_id(0) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < count)[:, None] & (n < channels)[None, :]
    # tiles and channels past the end compute with the last ones, and are not written
    tile, c = tl.minimum(m, count - 1), n if EVEN else tl.minimum(n, channels - 1)
    image = tile // (tiles_high * tiles_wide)
    top = tile // tiles_wide % tiles_high * 4 - padding
    left = tile % tiles_wide * 4 - padding
    if affine_ptr is not None:
        a, b = _factors(affine_ptr, image, c, channels, affine_images, False)
    # 64 bits to the image where the block begins, 32 from there on
    first_row = tl.cast(first // (tiles_high * tiles_wide), tl.int64) * height
    x_ptr += first_row * width * channels
    offset = ((image * height - first_row + top) * width + left).to(tl.int32)[:, None] * channels + c[None, :]
    columns = ()
    for j in tl.static_range(6):
        column = ()
        for i in tl.static_range(6):
            inside = (top + i >= 0) & (top + i < height) & (left + j >= 0) & (left + j < width)
            x = tl.load(x_ptr + (i * width + j) * channels + offset, mask=inside[:, None], other=0.0)
            if affine_ptr is not None:
                x = _activated(x, a, b, inside[:, None], SILU)
            column += (x.to(tl.float32),)
        columns += (_to_points(column),)
    to = tiles_ptr + tl.cast(first, tl.int64) * channels
    offset = (m - first)[:, None] * channels + n[None, :]
    for i in tl.static_range(6):
        row = _to_points(_row(columns, i))
        for j in tl.static_range(6):
            place = tl.cast(count, tl.int64) * channels * (6 * i + j)
            tl.store(to + place + offset, row[j].to(tiles_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _winograd_output(
    y_ptr,  # (images, high, wide, outputs)
    products_ptr,  # (36, images tiles_high tiles_wide, outputs)
    factors_ptr,  # (outputs,)
    rows_ptr,
    residual_ptr,
    sums_ptr,
    scale,
    clip,
    images,
    tiles_high,
    tiles_wide,
    high,
    wide,
    outputs,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A^T products A of BLOCK_M tiles and BLOCK_N outputs, and the tail; PART > 0: of whole tiles only."""
    image_tiles = tiles_high * tiles_wide
    count = images * image_tiles
    first = tl.program_id(0) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    o = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < count)[:, None] & (o < outputs)[None, :]
    source = products_ptr + tl.cast(first, tl.int64) * outputs
    offset = (m - first)[:, None] * outputs + o[None, :]
    columns = ()
    for j in tl.static_range(6):
        column = ()
        for i in tl.static_range(6):
            place = tl.cast(count, tl.int64) * outputs * (6 * i + j)
            column += (tl.load(source + place + offset, mask=mask, other=0.0).to(tl.float32),)
        columns += (_from_points(column),)
    factors = tl.load(factors_ptr + o, mask=o < outputs, other=0.0)[None, :]
    rows = _rows(rows_ptr, m, o, mask, first, image_tiles, outputs, ROWS)
    begin = _target(first, image_tiles, tiles_wide, high, wide, 4)
    offset = (_target(m, image_tiles, tiles_wide, high, wide, 4) - begin).to(tl.int32)[:, None] * outputs + o[None, :]
    values = ()
    for i in tl.static_range(4):
        row = _from_points(_row(columns, i))
        for j in tl.static_range(4):
            inside = (m // tiles_wide % tiles_high * 4 + i < high) & (m % tiles_wide * 4 + j < wide)
            there = (begin + i * wide + j) * outputs
            total = row[j] * factors + rows
            own = mask & inside[:, None]
            values += (_write(total, y_ptr, residual_ptr, there, offset, own, scale, clip, RESIDUAL),)
    if PART > 0:
        _write_sums(
            values, 16, sums_ptr, o, tl.program_id(0), count, image_tiles, outputs, 0, BLOCK_M, BLOCK_N, 1, PART
        )


def images_at_once(n: int, tiles: int, channels: int, device: torch.device | None = None) -> int:
    """Of n images with so many tiles, and channels before and after together: equal parts that fit the cache."""
    size = CACHE_BYTES
    if device is not None and device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", size * 8 // 5) * 5 // 8
    most = max(1, size // (SPAN**2 * tiles * channels * DTYPE.itemsize))
    return triton.cdiv(n, triton.cdiv(n, most))


def block_of(channels: int) -> tuple[int, int]:
    """Tiles and channels of a program that transforms."""
    block = min(64, max(16, triton.next_power_of_2(channels)))
    return ELEMENTS // block, block


def _transform(
    x: torch.Tensor,
    affine: torch.Tensor | None,  # (2, N, C), whose first images are those of x
    grid: tuple[int, int],
    padding: int,
    silu: bool,
) -> torch.Tensor:
    """(36, T, C) float16: the tiles of x."""
    n, c, h, w = x.shape
    count, (m, k) = n * math.prod(grid), block_of(c)
    tiles = torch.empty((SPAN**2, count, c), dtype=DTYPE, device=x.device)
    between = 0 if affine is None else affine.stride(0) // c
    # fmt: off
    _winograd_input[triton.cdiv(count, m), triton.cdiv(c, k)](
        tiles, x, affine, between, n, h, w, *grid, c, padding, SILU=silu, EVEN=c % k == 0, BLOCK_M=m, BLOCK_N=k,
    )
    # fmt: on
    return tiles


def _multiply(tiles: torch.Tensor, weights: torch.Tensor, library: bool) -> torch.Tensor:
    """(36, T, O): tiles (36, T, C) times weights (36, O, C), as 36 convolutions 1x1 or by torch.bmm."""
    if library:
        return torch.bmm(tiles, weights.mT)
    (places, outputs, c), count = weights.shape, tiles.shape[1]
    products = torch.empty((places, count, outputs), dtype=DTYPE, device=tiles.device)
    b = blocks(count, outputs, c, 1, DTYPE, phases=places)
    # fmt: off
    _conv2d_products._conv2d_fwd[triton.cdiv(count, b.m) * triton.cdiv(outputs, b.n), places, 1](
        None, tiles, weights, None, None, None, None, products, None, 1.0, None,
        1, count, 1, count, 1, c, outputs, 0, triton.cdiv(c, b.k),
        KERNEL=1, PHASES=places, BLOCK_M=b.m, BLOCK_N=b.n, BLOCK_K=b.k, SPLIT=True, EVEN=c % b.k == 0, ROWS=0,
        RESIDUAL=False, PART=0, AFFINE=False, SILU=False, ONE_IMAGE=False, PADDED=False, BATCHED=True,
        PRECISION="ieee", num_warps=b.warps, num_stages=b.stages,
    )
    # fmt: on
    return products


def forward(
    x: torch.Tensor,
    packed: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int = 1,
    *,
    clip: float | None = None,
    prologue: Prologue | Factor | None = None,
    statistics: Statistics | None = None,
    library: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What `conv2d.forward` gives, of a weight (O, C, 3, 3) that `pack` has transformed; `library`: by torch.bmm.

    `statistics` need a height and a width of y that are multiples of 4; ValueError otherwise.
    """
    (n, c, h, w), (weights, factors) = x.shape, packed
    outputs, high, wide = weights.shape[1], h + 2 * padding - 2, w + 2 * padding - 2
    if statistics is not None and (high % SIDE or wide % SIDE):
        raise ValueError(f"statistics of {high} x {wide} pixels are not of whole tiles")
    y = torch.empty((n, outputs, high, wide), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if y.numel() == 0:
        return y if statistics is None else (y, moments(y, statistics))
    grid = triton.cdiv(high, SIDE), triton.cdiv(wide, SIDE)
    tiles, (block_m, block_n) = math.prod(grid), block_of(outputs)
    part = math.gcd(tiles, block_m) if statistics is not None else 0
    sums = torch.empty((n, tiles // part, 2, outputs), dtype=torch.float32, device=x.device) if part else None
    x, residual = images_last(x), None if residual is None else images_last(residual)
    rows = None if rows is None else rows.contiguous()
    with on_device(x):
        affine = None if prologue is None else affine_of(prologue, n, c, x.device)
        silu = prologue is not None and prologue.silu
        at_once = images_at_once(n, tiles, c + outputs, x.device)
        for first in range(0, n, at_once):
            images = slice(first, first + at_once)
            of = None if affine is None else affine[:, first:]
            own = [None if t is None else t[images] for t in (residual, sums)]
            own.insert(0, rows if rows is None or len(rows) == 1 else rows[images])
            count = len(y[images])
            # fmt: off
            _winograd_output[triton.cdiv(count * tiles, block_m), triton.cdiv(outputs, block_n)](
                y[images],
                # held by no name: those of the next images come to the same memory, and to the same cache lines
                _multiply(_transform(x[images], of, grid, padding, silu), weights, library),
                factors, *own, scale, clip, count, *grid, high, wide, outputs,
                PART=part, BLOCK_M=block_m, BLOCK_N=block_n, **options(rows, residual),
            )
            # fmt: on
        return y if statistics is None else (y, moments(y, statistics, sums, SIDE**2 * part))
