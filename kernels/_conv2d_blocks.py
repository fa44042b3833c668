"""Block sizes of the convolution kernels: functions of the sizes alone, so that a shape always runs the same way.

A model, not a measurement: of an H100's 132 multiprocessors, about 128 are worth filling (an A100 has 108). A tile of
m x n outputs costs m n K / (rate efficiency) clocks, the grid runs in waves, and splitting the sum over K buys
parallelism for a pass over the partial sums.
"""

from __future__ import annotations

import dataclasses

import torch
import triton

PROCESSORS = 128
RATE = {1: 4096, 2: 2048, 4: 1024}  # multiply-adds per clock of a multiprocessor's matrix units, by bytes per element
IEEE_RATE = 128  # float32 without matrix units
# (m, n, warps, efficiency): larger tiles read less per product
TILES = ((128, 256, 8, 1.0), (128, 128, 8, 0.9), (128, 64, 4, 0.75), (64, 64, 4, 0.6))
IEEE_TILES = ((128, 64, 8, 0.8), (64, 64, 4, 0.7))  # float32 accumulators and operands of all lie in registers
LAUNCH_CLOCKS = 2500  # inside a graph
REDUCE_BYTES = 2000  # per clock, from the second-level cache
MAX_SPLITS = 16
MIN_STEPS = 4  # blocks along K that a split must have: fewer do not fill the pipeline


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A tile of m pixels by n outputs, k products deep at a time; the sum over K in `splits` parts."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    splits: int = 1


def depth(inputs: int, taps: int, itemsize: int, ieee: bool) -> int:
    """Products per step: 128 bytes of channels (without matrix units 16 channels) where that divides them, else fewer;
    of a number of channels that no block divides, as many as there are products, up to that."""
    full = 16 if ieee else 128 // itemsize
    sizes = [size for size in (128, 64, 32, 16) if size <= full]
    whole = [size for size in sizes if inputs % size == 0]
    return whole[0] if whole else min(full, max(16, triton.next_power_of_2(taps * inputs)))


def blocks(
    pixels: int,
    outputs: int,
    inputs: int,
    taps: int,
    dtype: torch.dtype,
    ieee: bool = False,
    phases: int = 1,
    area: int = 0,
    processors: int = PROCESSORS,
) -> Blocks:
    """The cheapest blocks of the model for (phases, pixels, outputs) sums of taps * inputs products.

    `ieee`: float32 without matrix units; `area`: pixels of an image, given where a prologue is applied: it takes the
    registers of 256 outputs, and its factors are a row for all pixels of a tile if that lies in one image, and as large
    as the tile itself if not.
    """
    return cheapest(pixels, outputs, inputs, taps, dtype, ieee, phases, area, processors)[1]


def cheapest(
    pixels: int,
    outputs: int,
    inputs: int,
    taps: int,
    dtype: torch.dtype,
    ieee: bool = False,
    phases: int = 1,
    area: int = 0,
    processors: int = PROCESSORS,
    most_splits: int = MAX_SPLITS,
    least_n: int = 0,
) -> tuple[float, Blocks]:
    """The clocks of `blocks`, and these; with at most so many splits, and tiles of so many outputs or more."""
    rate = IEEE_RATE if ieee else RATE[dtype.itemsize]
    k = depth(inputs, taps, dtype.itemsize, ieee)
    products = taps * inputs
    steps = triton.cdiv(products, k)
    best: tuple[float, Blocks] | None = None
    tried: tuple[tuple[int, int, int, float], ...] = IEEE_TILES if ieee else TILES
    if area:
        tried = tuple(tile for tile in tried if tile[1] <= 128 and area % tile[0] == 0) or tried[-1:]
    if dtype.itemsize == 1:  # has two sums, see _product
        tried = tuple(tile for tile in tried if tile[1] <= 128)
    for m, n, warps, efficiency in tried:
        n = min(n, max(16, triton.next_power_of_2(outputs)))
        if n < least_n:
            continue
        tiles = triton.cdiv(pixels, m) * triton.cdiv(outputs, n) * phases
        for splits in sorted({1, max(1, min(processors // max(tiles, 1), steps // MIN_STEPS, most_splits))}):
            waves = triton.cdiv(tiles * splits, processors)
            clocks = waves * m * n * products / (splits * rate * efficiency)
            if splits > 1:
                clocks += LAUNCH_CLOCKS + phases * pixels * outputs * 8 * splits / REDUCE_BYTES
            found = Blocks(m, n, k, warps, 2 if area % m else 3 if n == 256 else 4, splits)
            if best is None or clocks < best[0]:
                best = clocks, found
    assert best is not None
    return best


def weight_blocks(pixels: int, outputs: int, inputs: int, taps: int, dtype: torch.dtype, ieee: bool = False) -> Blocks:
    """For the gradient of a weight: m outputs by n of the taps * inputs columns, k pixels at a time.

    Splits over the pixels fill the machine twice, as long as each has MIN_STEPS steps; there is always a second pass,
    which also changes the order of the axes.
    """
    side = 64 if ieee else 128
    m = min(side, max(64, triton.next_power_of_2(outputs)))
    whole = [size for size in (128, 64, 32, 16) if size <= side and inputs % size == 0]
    n = whole[0] if whole else min(side, max(16, triton.next_power_of_2(taps * inputs)))
    k = 16 if ieee else 128 // dtype.itemsize
    tiles = triton.cdiv(outputs, m) * triton.cdiv(taps * inputs, n)
    splits = max(1, min(2 * PROCESSORS // tiles, triton.cdiv(pixels, k) // MIN_STEPS))
    return Blocks(m, n, k, 8 if m * n >= 128 * 128 else 4, 3, splits)
