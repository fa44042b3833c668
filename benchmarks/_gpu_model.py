"""What kernels should take on a GPU: from bytes, products, and the instructions that the tests' table counted.

Nothing here is measured. A kernel takes the longest of what its bytes, its second-level cache, its products and its
instructions need, and a launch. `ASSUMED` says what the counts do not tell.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm_fast.kernels import _conv2d_winograd as winograd
from edm_fast.kernels import attention, conv2d, group_norm_silu
from edm_fast.kernels import pixel_norm as pixel_kernels
from edm_fast.kernels._conv2d_blocks import Blocks, blocks

TABLE = Path(__file__).parents[1] / "tests/kernels/resources.json"
SIZE = 2  # bytes of an element
HALF = torch.float16


class Chip(NamedTuple):
    name: str
    table: str  # its rows
    processors: int
    clock: float  # Hz, where no products heat it
    rate: int  # multiply-adds of 16-bit numbers per clock of a multiprocessor
    products: float  # operations per second of a large matrix product, as libraries reach them
    convolutions: float  # the same of cuDNN's
    memory: float  # bytes per second of a copy
    cache: float  # bytes per second from the second-level cache
    cache_bytes: int
    shared: int  # bytes of a multiprocessor

    def rhythm(self) -> float:
        """Clocks per second of the matrix units at the speed of a large product."""
        return self.products / (2 * self.rate * self.processors)


CHIPS = {
    "h200": Chip("H200", "sm_90a", 132, 1.75e9, 2048, 790e12, 643e12, 4.3e12, 7.2e12, 50 * 2**20, 228 * 1024),
    "a100": Chip("A100", "sm_80", 108, 1.41e9, 1024, 270e12, 235e12, 1.75e12, 4.5e12, 40 * 2**20, 164 * 1024),
}
ASSUMED = {
    "launch": 1.5e-6,  # seconds of a kernel in a graph beside its work
    "issue": 0.7,  # of the slots that kernels without products fill
    "pipeline": 0.9,  # of a main loop's bound: waits at its barriers
    "start": 1500,  # clocks until a program's loop is at speed, and those that wait for its last sums
    "attention": 0.6,  # of its loop's bound: its products wait for each other
    "attention backward": 2.5,  # of its forward: five products where that has two
    "weight gradient": 0.8,  # of the speed of cuDNN's forward
    "Adam": 18,  # readings and writings of each parameter, as torch's list of operations has them
    "eager": 6e-6,  # seconds of Python and torch for a kernel that is launched alone, with autograd
    "solver": 4,  # launches of a step of a sampler beside its evaluations
}


@functools.cache
def rows() -> Any:
    table = json.loads(TABLE.read_text())
    return table[max(table, key=lambda version: [int(part) for part in version.split(".")])]


@functools.cache
def loops(chip: Chip) -> dict[tuple[int, int, int, int], Any]:
    """By block and warps, what the table has of direct convolutions in float16."""
    found = {}
    for name, variant in conv2d.variants().items():
        row, block = rows()["conv2d"].get(name, {}).get(chip.table), variant.constants
        if row and name.startswith(("fwd_fp16", "upsample_fp16")) and not (block["AFFINE"] or block["PART"]):
            found[block["BLOCK_M"], block["BLOCK_N"], block["BLOCK_K"], variant.num_warps] = row
    return found


def loop_of(chip: Chip, b: Blocks) -> Any:
    """That of a block, or of the one most like it."""
    known, wanted = loops(chip), (b.m, b.n, b.k, b.warps)
    return known[min(known, key=lambda key: sum(abs(math.log2(p / q)) for p, q in zip(key, wanted)))]


def moved(chip: Chip, size: float, each: float | None = None) -> float:
    """Seconds for so many bytes; tensors of `each` that fit half of the second-level cache come from there."""
    fits = (size if each is None else each) <= chip.cache_bytes / 2
    return size / (chip.cache if fits else chip.memory)


def waves(chip: Chip, b: Blocks, tiles: int, steps: float, after: float, row: Any = None, share: float = 1) -> float:
    """Seconds of a grid of products: `tiles` programs of so many steps, and `after` bytes of each at its end; `share`:
    of a step's operands that is fetched for it."""
    row = row or loop_of(chip, b)
    clocks = b.m * b.n * b.k / chip.rate
    through = share * (b.m + b.n) * b.k * SIZE * chip.processors / chip.cache * chip.rhythm()
    step = max(clocks / row["loop"]["bound"] / ASSUMED["pipeline"], through)
    resident = min(chip.shared // max(row["shared"], 1), 65536 // (row["registers"] * 32 * b.warps))
    end = ASSUMED["start"] + after * chip.processors / chip.memory * chip.rhythm()
    turns = -(-tiles // chip.processors)
    total = turns * steps * step + (end if resident > 1 else turns * end)
    return total / chip.rhythm()


class Convolution(NamedTuple):
    """Of an image (n, c, h, w), `phases` 4 after its upsampling; `added`: images that its tail reads."""

    n: int
    c: int
    h: int
    w: int
    outputs: int
    kernel: int
    added: int = 0
    phases: int = 1

    def pixels(self) -> int:
        return self.n * self.h * self.w

    def bytes_out(self) -> int:
        return self.pixels() * self.phases * self.outputs * SIZE

    def flops(self) -> int:
        return 2 * self.pixels() * self.phases * self.c * self.outputs * self.kernel**2


def direct(chip: Chip, c: Convolution) -> float:
    taps = 4 if c.phases == 4 else c.kernel**2
    b = blocks(c.pixels(), c.outputs, c.c, taps, HALF, phases=c.phases)
    tiles = -(-c.pixels() // b.m) * -(-c.outputs // b.n) * c.phases
    images = 1 + c.added
    steps = math.ceil(taps * c.c / b.k) / b.splits
    seconds = waves(chip, b, tiles * b.splits, steps, 0 if b.splits > 1 else b.m * b.n * SIZE * images)
    if b.splits > 1:
        seconds += ASSUMED["launch"] + c.bytes_out() * (4 * b.splits + 1) / chip.cache
    bytes_in = c.pixels() * c.c * SIZE + c.outputs * c.c * taps * c.phases * SIZE
    return max(seconds, moved(chip, bytes_in + images * c.bytes_out(), c.bytes_out())) + ASSUMED["launch"]


def boxes(chip: Chip, c: Convolution) -> float | None:
    """The kernel in Gluon; None where it cannot run. Its rows and weights serve twice: 7 boxes where there were 9."""
    from edm_fast.kernels import _conv2d_gluon as gluon

    sizes = torch.Size([c.n, c.c, c.h, c.w]), torch.Size([c.outputs, c.c, c.kernel, c.kernel])
    if chip.table != "sm_90a" or c.phases != 1 or gluon.shape_reason(*sizes, 1):
        return None
    row = rows()["conv2d"]["boxes_fp16_32"][chip.table]
    # a step of two products; the producer is given four warps
    b = Blocks(2 * gluon.PIXELS, gluon.PIXELS, gluon.CHANNELS, gluon.WARPS + 4, 2)
    tiles, images = gluon.tiles(c.n, c.h, c.w, c.outputs), 1 + c.added
    seconds = waves(chip, b, tiles, 9 * c.c / b.k, b.m * b.n * SIZE * images, row, 7 / 9)
    bytes_in = c.pixels() * c.c * SIZE + c.outputs * c.c * 9 * SIZE
    return max(seconds, moved(chip, bytes_in + images * c.bytes_out(), c.bytes_out())) + ASSUMED["launch"]


def library(chip: Chip, c: Convolution, passes: bool = False) -> float:
    """cuDNN's convolution and its tail in one pass, or in one for the bias and two for a residual and its scale. Its
    blocks are taken to suit: nothing is lost but where there are too few, of 128 x 128 in up to 8 parts."""
    if c.phases == 4:
        return upsampled(chip, c) + library(chip, c._replace(h=2 * c.h, w=2 * c.w, phases=1), passes)
    parts = min(8, max(1, c.c * c.kernel**2 // 256))
    busy = min(1.0, -(-c.pixels() // 128) * -(-c.outputs // 128) * parts / chip.processors)
    products = c.flops() / chip.convolutions / busy + ASSUMED["start"] / chip.rhythm()
    size = c.pixels() * c.c * SIZE + c.outputs * c.c * c.kernel**2 * SIZE + c.bytes_out()
    images = [2, *([3, 2] if c.added else [])] if passes else [2 + c.added]
    tail = sum(moved(chip, count * c.bytes_out(), c.bytes_out()) + ASSUMED["launch"] for count in images)
    return max(products, moved(chip, size, c.bytes_out())) + ASSUMED["launch"] + tail


def upsampled(chip: Chip, c: Convolution) -> float:
    return resampled(chip, c.pixels() * c.c, 4 * c.pixels() * c.c)


def resampled(chip: Chip, inputs: int, outputs: int) -> float:
    return moved(chip, (inputs + outputs) * SIZE, outputs * SIZE) + ASSUMED["launch"]


def issued(chip: Chip, op: str, name: str, programs: int, warps: int = 4) -> float:
    """Seconds to issue each instruction of a kernel once in every warp, and for its special functions."""
    row = rows()[op][name][chip.table]
    slots = max(row["slots"], 8 * row["special"])
    return programs * warps * slots / (4 * chip.processors * chip.clock * ASSUMED["issue"])


def winograd_parts(chip: Chip, c: Convolution, norm: bool) -> dict[str, float]:
    """Seconds of its three kernels, without their launches, and of these."""
    tiles = -(-c.h // 4) * -(-c.w // 4)
    of = winograd.Chip.with_cache(chip.cache_bytes, chip.processors)
    at_once = winograd.images_at_once(of, c.n, tiles, c.c, c.outputs, False)
    found: Counter[str] = Counter()
    for first in range(0, c.n, at_once):
        images = min(at_once, c.n - first)
        found.update(winograd_part(chip, of, c, images, images * tiles, norm))
        found["launches"] += 3 * ASSUMED["launch"]
    return found


def winograd_part(
    chip: Chip, of: winograd.Chip, c: Convolution, images: int, count: int, norm: bool
) -> dict[str, float]:
    """Of so many of its images, which go through at once, with `count` tiles."""
    image, result = (c.pixels() * channels * SIZE for channels in (c.c, c.outputs))
    share, spread = images / c.n, 36 / 16
    (m, k), (mo, ko) = winograd.block_of(c.c), winograd.block_of(c.outputs)
    name = "winograd_input_fp16_c256" + ("_prologue" if norm else "")
    first = max(
        issued(chip, "conv2d", name, -(-count // m) * -(-c.c // k)),
        moved(chip, share * image, image),
        2 * spread * share * image / chip.cache,
    )
    b = winograd.products(of, count, c.c, c.outputs, False).blocks
    grid = 36 * -(-count // b.m) * -(-c.outputs // b.n)
    turns = waves(chip, b, grid, -(-c.c // b.k), 0)
    through = grid * ((b.m + b.n) * c.c + b.m * b.n) * SIZE / chip.cache
    last = max(
        issued(chip, "conv2d", "winograd_output_fp16_c256", -(-count // mo) * -(-c.outputs // ko)),
        moved(chip, (1 + c.added) * share * result, result) + spread * share * result / chip.cache,
    )
    return {"to tiles": first, "products": max(turns, through), "back": last}


def norm(chip: Chip, n: int, c: int, pixels: int, statistics_alone: bool = False) -> float:
    """group_norm_silu in 32 groups, in one pass where it can be."""
    once = group_norm_silu.one_pass(pixels, c, 32, SIZE, True)
    image = n * c * pixels * SIZE
    if statistics_alone:
        return moved(chip, image) + 2 * ASSUMED["launch"]
    name, tile = ("fwd_fp16_c192_hw4096", group_norm_silu.TILE)
    warps, images, launches = 4, 3, 3
    if once:
        name, tile, warps, images, launches = "fwd_once_fp16_c256_hw1024", 1024 * 8 * 2, 8, 2, 1
    issue = issued(chip, "group_norm_silu", name, -(-n * c * pixels // tile), warps)
    return max(issue, moved(chip, images * image, image)) + launches * ASSUMED["launch"]


def pixel_norm(chip: Chip, n: int, c: int, pixels: int, groups: int | None, gain: bool, silu: bool) -> float:
    """pixel_norm of so many groups (None: without the norm), by the instructions of a program that does what it does
    to as many elements."""
    width, blocks = pixel_kernels.tile(pixels, c, groups)
    image, programs = n * c * pixels * SIZE, n * -(-pixels // blocks["BLOCK_P"]) * -(-c // width)
    if groups is None:
        name = "fwd_gain_fp16_c192_hw4096" if gain else "fwd_silu_fp16_c384_hw1024"
    else:
        norm = "fwd_norm_fp16_c192_hw4096" if groups == 1 else "fwd_qkv_fp16_c1728_hw256"
        name = "fwd_all_fp16_c384_hw1024" if silu else norm
    issue = issued(chip, "pixel_norm", name, programs, blocks["num_warps"])
    return max(issue, moved(chip, 2 * image, image)) + ASSUMED["launch"]


def attended(chip: Chip, n: int, heads: int, size: int, pixels: int) -> float:
    width = attention.padded(size)
    q, k, warps, _ = attention.blocks(width, SIZE, False)
    name = {64: "fwd_fp16_c64_hw1024", 128: "fwd_fp16_c128_hw256"}.get(width, "fwd_fp16_c256_hw256")
    loop = rows()["attention"][name][chip.table]["loop"]
    clocks = 2 * q * k * width / chip.rate / loop["bound"] / ASSUMED["attention"]
    programs = n * heads * -(-pixels // q)
    per_processor = max(1.0, programs / chip.processors)
    seconds = per_processor * (-(-pixels // k) * clocks + ASSUMED["start"] / 2) / chip.rhythm()
    return max(seconds, moved(chip, 4 * n * heads * size * pixels * SIZE)) + ASSUMED["launch"]
