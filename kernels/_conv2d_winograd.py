"""3x3 convolution by Winograd's F(4x4, 3x3) in float16: 36 products for 16 outputs in place of 144 (Lavin & Gray 2016).

    y = A^T [sum over channels of (G w G^T) * (B^T x B)] A            x: tiles of 6x6 pixels, which overlap; y: of 4x4

Three kernels: the transform of x, after a norm and SiLU if there is a `Prologue`; 36 matrix products, one for each
place in a tile, by the products of the direct convolution as 1x1 convolutions or by torch.bmm; the transform back with
the tail. Transforms are taken in float32. What lies between the kernels is float16 and 2.25 times as large as the
images, so that a few images at a time go through all three and it stays in the second-level cache: twice as many where
a program has all outputs of its tiles, as it then writes products where it has read tiles.

Error at 256 channels, relative and rms: 1.7e-3 (1.4e-3 if products were not rounded to float16); direct convolution in
float16 or TF32 3e-4, in bfloat16 2.9e-3. The points 0, 11/16, -11/16, 3/2, -3/2 and infinity err least of those with
short fractions: 0, 1, -1, 2, -2 have 5.5e-3. Rows of B^T sum to at most 5.5 in magnitude, and weights are scaled for
each output so that theirs sum to at most 1: images up to 2,000 cannot overflow.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from edm_fast.kernels import _conv2d_products
from edm_fast.kernels._conv2d_blocks import LAUNCH_CLOCKS, PROCESSORS, TILES, Blocks, cheapest
from edm_fast.kernels._conv2d_prologue import Factor, Prologue, _activated, _factors, affine_of, images_last
from edm_fast.kernels._conv2d_tail import Statistics, _rows, _target, _write, _write_sums, moments, options
from edm_fast.kernels._launch import in_turn, on_device, started

SIDE, SPAN = 4, 6  # of a tile of y and of x
NEAR, FAR = Fraction(11, 16), Fraction(3, 2)
POINTS = (Fraction(0), NEAR, -NEAR, FAR, -FAR)  # and infinity
P, Q = tl.constexpr(float(NEAR)), tl.constexpr(float(FAR))  # their powers are exact in float32, too
DTYPE = torch.float16
CACHE_BYTES = 32 * 2**20  # for tiles and products: 5/8 of an H200's 50 MB, the rest is for weights and images
MOST_IN_PLACE = max(n for _, n, _, _ in TILES)  # outputs whose products may lie where tiles were
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
    tiles_ptr,  # (36, images tiles_high tiles_wide, pitch)
    x_ptr,  # (images, height, width, channels)
    affine_ptr,
    affine_images,
    images,
    height,
    width,
    tiles_high,
    tiles_wide,
    channels,
    pitch,
    padding,
    SILU: tl.constexpr,
    EVEN: tl.constexpr,  # BLOCK_N divides the channels
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
):
    """B^T x B of BLOCK_M tiles and BLOCK_N channels."""
    in_turn(EARLY)
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
    to = tiles_ptr + tl.cast(first, tl.int64) * pitch
    offset = (m - first)[:, None] * pitch + n[None, :]
    for i in tl.static_range(6):
        row = _to_points(_row(columns, i))
        for j in tl.static_range(6):
            place = tl.cast(count, tl.int64) * pitch * (6 * i + j)
            tl.store(to + place + offset, row[j].to(tiles_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _winograd_output(
    y_ptr,  # (images, high, wide, outputs)
    products_ptr,  # (36, images tiles_high tiles_wide, pitch)
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
    pitch,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A^T products A of BLOCK_M tiles and BLOCK_N outputs, and the tail; PART > 0: of whole tiles only."""
    in_turn(EARLY)
    image_tiles = tiles_high * tiles_wide
    count = images * image_tiles
    first = tl.program_id(0) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    o = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < count)[:, None] & (o < outputs)[None, :]
    source = products_ptr + tl.cast(first, tl.int64) * pitch
    offset = (m - first)[:, None] * pitch + o[None, :]
    columns = ()
    for j in tl.static_range(6):
        column = ()
        for i in tl.static_range(6):
            place = tl.cast(count, tl.int64) * pitch * (6 * i + j)
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


class Chip(NamedTuple):
    """What the images that go through at once depend on."""

    cache: int = CACHE_BYTES  # bytes for tiles and products
    processors: int = PROCESSORS

    @staticmethod
    def of(device: torch.device) -> Chip:
        if device.type != "cuda":
            return Chip()
        found = torch.cuda.get_device_properties(device)
        return Chip.with_cache(getattr(found, "L2_cache_size", CACHE_BYTES * 8 // 5), found.multi_processor_count)

    @staticmethod
    def with_cache(size: int, processors: int) -> Chip:
        """Of a second-level cache of so many bytes: weights and images have the rest."""
        return Chip(size * 5 // 8, processors)


class Products(NamedTuple):
    """How `count` tiles are multiplied."""

    clocks: float  # by the model of `_conv2d_blocks`
    blocks: Blocks
    in_place: bool
    pitch: int  # from tile to tile
    result_pitch: int  # from product to product
    size: int  # bytes of tiles and products


@functools.lru_cache(4096)
def products(chip: Chip, count: int, c: int, outputs: int, library: bool) -> Products:
    """The cheapest; of blocks whose products would not fit the cache beside the tiles, those that have all outputs."""
    # multiples of 16, of which kernels know that they can read and write 16 bytes at a time
    pitch, result_pitch = (size if library else -(-size // 16) * 16 for size in (c, outputs))

    def of(least_n: int) -> Products:
        clocks, b = cheapest(
            count, outputs, c, 1, DTYPE, phases=SPAN**2, processors=chip.processors, most_splits=1, least_n=least_n
        )
        in_place = b.n >= outputs and not library
        pitches = (max(pitch, result_pitch),) * 2 if in_place else (pitch, result_pitch)
        size = SPAN**2 * count * (pitches[0] if in_place else sum(pitches)) * DTYPE.itemsize
        return Products(clocks, b, in_place, *pitches, size)

    found = of(0)
    return found if found.size <= chip.cache or library or outputs > MOST_IN_PLACE else of(outputs)


@functools.lru_cache(4096)
def images_at_once(chip: Chip, n: int, tiles: int, c: int, outputs: int, library: bool) -> int:
    """Of n images with so many tiles each: those that take the fewest clocks, of what fits the cache."""

    def clocks(images: int) -> float:
        whole, rest = divmod(n, images)
        parts = [images] * whole + [rest] * (rest > 0)
        return sum(3 * LAUNCH_CLOCKS + products(chip, part * tiles, c, outputs, library).clocks for part in parts)

    fit = [i for i in range(1, n + 1) if products(chip, i * tiles, c, outputs, library).size <= chip.cache]
    return min(fit or [1], key=clocks)


def block_of(channels: int) -> tuple[int, int]:
    """Tiles and channels of a program that transforms."""
    block = min(64, max(16, triton.next_power_of_2(channels)))
    return ELEMENTS // block, block


def _transform(
    x: torch.Tensor,
    affine: torch.Tensor | None,  # (2, N, C), whose first images are those of x
    grid: tuple[int, int],
    pitch: int,
    padding: int,
    silu: bool,
    start: dict[str, Any],
) -> torch.Tensor:
    """(36, T, pitch) float16: the tiles of x, in the first C of each row."""
    n, c, h, w = x.shape
    count, (m, k) = n * math.prod(grid), block_of(c)
    tiles = torch.empty((SPAN**2, count, pitch), dtype=DTYPE, device=x.device)
    between = 0 if affine is None else affine.stride(0) // c
    # fmt: off
    _winograd_input[triton.cdiv(count, m), triton.cdiv(c, k)](
        tiles, x, affine, between, n, h, w, *grid, c, pitch, padding,
        SILU=silu, EVEN=c % k == 0, BLOCK_M=m, BLOCK_N=k, **start,
    )
    # fmt: on
    return tiles


def _multiply(
    tiles: torch.Tensor, weights: torch.Tensor, how: Products, library: bool, start: dict[str, Any]
) -> torch.Tensor:
    """(36, T, pitch), products in the first O of each row: tiles (36, T, C) times weights (36, O, C), as convolutions
    1x1 or by torch.bmm."""
    if library:
        return torch.bmm(tiles, weights.mT)
    (places, outputs, c), count, b = weights.shape, tiles.shape[1], how.blocks
    shape = places, count, how.result_pitch
    result = tiles if how.in_place else torch.empty(shape, dtype=DTYPE, device=tiles.device)
    # fmt: off
    _conv2d_products._conv2d_fwd[triton.cdiv(count, b.m) * triton.cdiv(outputs, b.n), places, 1](
        None, tiles, weights, None, None, None, None, result, None, 1.0, None,
        1, count, 1, count, 1, c, outputs, 0, how.pitch, how.result_pitch, triton.cdiv(c, b.k),
        KERNEL=1, PHASES=places, BLOCK_M=b.m, BLOCK_N=b.n, BLOCK_K=b.k, SPLIT=True, EVEN=c % b.k == 0, ROWS=0,
        RESIDUAL=False, PART=0, AFFINE=False, SILU=False, ONE_IMAGE=False, PADDED=False,
        PRECISION="ieee", num_warps=b.warps, num_stages=b.stages, **start,
    )
    # fmt: on
    return result


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
    early: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What `conv2d.forward` gives, of a weight (O, C, 3, 3) that `pack` has transformed; `library`: by torch.bmm.

    `early`: kernels are launched while ours before them end, where there is no `early_reason`; all of them are ours,
    so not with `library`. `statistics` need a height and a width of y that are multiples of 4. ValueError otherwise.
    """
    (n, c, h, w), (weights, factors) = x.shape, packed
    outputs, high, wide = weights.shape[1], h + 2 * padding - 2, w + 2 * padding - 2
    if statistics is not None and (high % SIDE or wide % SIDE):
        raise ValueError(f"statistics of {high} x {wide} pixels are not of whole tiles")
    if early and library:
        raise ValueError("the library's kernels are not launched early")
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
        chip, start = Chip.of(x.device), started(early)
        at_once = images_at_once(chip, n, tiles, c, outputs, library)
        for first in range(0, n, at_once):
            images = slice(first, first + at_once)
            how = products(chip, len(y[images]) * tiles, c, outputs, library)
            of = None if affine is None else affine[:, first:]
            own = [None if t is None else t[images] for t in (residual, sums)]
            own.insert(0, rows if rows is None or len(rows) == 1 else rows[images])
            count = len(y[images])
            # fmt: off
            _winograd_output[triton.cdiv(count * tiles, block_m), triton.cdiv(outputs, block_n)](
                y[images],
                # held by no name: those of the next images come to the same memory, and to the same cache lines
                _multiply(
                    _transform(x[images], of, grid, how.pitch, padding, silu, started(early, first > 0)),
                    weights, how, library, start,
                ),
                factors, *own, scale, clip, count, *grid, high, wide, outputs, how.result_pitch,
                PART=part, BLOCK_M=block_m, BLOCK_N=block_n, **options(rows, residual), **start,
            )
            # fmt: on
        return y if statistics is None else (y, moments(y, statistics, sums, SIDE**2 * part))
