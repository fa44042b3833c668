"""3x3 conv2d on Hopper's own units, in Gluon: boxes fetched by TMA, one warp ahead of eight that multiply.

    y = (weight * x + rows + residual) scale, within +-clip                half precision, sums in float32

A tile is two rows of pixels, each a box of 128 (32 columns of 4 images, say), by 128 outputs. For each shift to the
right and 64 channels, four rows of x and three weights are fetched, 16 KB each, for six products: a row serves both
rows of pixels, and so does a weight. That is 112 KB where a tile of 128 x 256 takes 144 for as many products. What
lies outside of the image comes as zeros, so that there are no masks and no addresses in registers. Both operands of
the matrix units lie in shared memory, in a ring of SLOTS boxes.

A slot has two barriers. `full`: the producer expects the bytes of a box, and TMA counts them down. `empty`: the
consumers arrive once all of them have taken it, which they know one product later, as one stays in flight.
tests/kernels/test_conv2d_gluon.py runs this very source, event by event in any order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from edm_fast.kernels._conv2d_prologue import images_last
from edm_fast.kernels._conv2d_tail import options
from edm_fast.kernels._launch import Variant, on_device

# names of Triton 3.9, or else of 3.6
_fetch = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_send = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
_meet = getattr(gl, "barrier", None) or gl.thread_barrier

PIXELS, CHANNELS, SLOTS, WARPS = 128, 64, 14, 8  # of a box, of a step, of the ring, that multiply
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclasses.dataclass(frozen=True)
class Box:
    """Pixels of one row of several images."""

    images: int
    columns: int


def box(width: int) -> Box | None:
    """One that rows of this width are made of; None where there is none of 8 columns or more."""
    columns = min(PIXELS, width & -width)
    return Box(PIXELS // columns, columns) if columns >= 8 else None


def reason(x: torch.Tensor, weight: torch.Tensor, padding: int) -> str | None:
    """Why a convolution of x (N, C, H, W) with weight (O, C, k, k) is not for this kernel, or None."""
    if triton.knobs.runtime.interpret:
        return "Triton's interpreter runs no Gluon"
    if not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] != 9:
        return "it needs a GPU of compute capability 9.0"
    if x.dtype not in TYPES:
        return f"it takes float16 and bfloat16, not {x.dtype}"
    return shape_reason(x.shape, weight.shape, padding)


def shape_reason(x: torch.Size, weight: torch.Size, padding: int) -> str | None:
    width = x[3] + 2 * padding - 2
    if weight[-1] != 3:
        return f"it takes kernels of 3x3, not {weight[-1]}x{weight[-1]}"
    if x[1] % CHANNELS or weight[0] % 8:
        return f"it takes multiples of {CHANNELS} channels and of 8 outputs, not {x[1]} and {weight[0]}"
    if (b := box(width)) is None:
        return f"rows of {width} pixels are no whole boxes"
    return f"{x[0]} images fill less than half of its boxes" if 2 * x[0] < b.images else None


def forward(
    x: torch.Tensor,
    packed: torch.Tensor,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int = 0,
    *,
    clip: float | None = None,
) -> torch.Tensor:
    """Convolve x (N, C, H, W) with packed (O, 3, 3, C), where there is no `reason` not to."""
    (n, c, h, w), outputs = x.shape, packed.shape[0]
    high, wide = h + 2 * padding - 2, w + 2 * padding - 2
    b = box(wide)
    assert b is not None
    shape, tile = (n, outputs, high, wide), [b.images, 1, b.columns, CHANNELS]
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    x, rows = images_last(x), None if rows is None else rows.contiguous()
    residual = None if residual is None else images_last(residual)
    pixels, of_weight = layouts()
    strides = [high * wide * outputs, wide * outputs, outputs, 1]
    described = (
        TensorDescriptor(y, [n, high, wide, outputs], strides, tile, pixels),
        TensorDescriptor(x, [n, h, w, c], [h * w * c, w * c, c, 1], tile, pixels),
        TensorDescriptor(packed, [outputs, 9 * c], [9 * c, 1], [PIXELS, CHANNELS], of_weight),
    )
    with on_device(x):
        _conv2d_fwd_boxes[tiles(n, high, wide, outputs),](
            *described, rows, residual, scale, clip, n, high, wide, c, outputs, padding,
            SLOTS=SLOTS, num_warps=WARPS, **options(rows, residual),
        )  # fmt: skip
    return y


def tiles(images: int, height: int, width: int, outputs: int) -> int:
    b = box(width)
    assert b is not None
    boxes = triton.cdiv(images, b.images) * (width // b.columns)
    return boxes * triton.cdiv(height, 2) * triton.cdiv(outputs, PIXELS)


def layouts() -> tuple[Any, Any]:
    """In shared memory, of images and of the weight: rows of 128 bytes, swizzled as matrix units read them."""
    pixels = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return pixels, gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _slot(place, SLOTS: gl.constexpr):
    return place % SLOTS


@gluon.jit
def _turn(place, SLOTS: gl.constexpr):
    """Parity of the slot's use: 0 for its first one."""
    return place // SLOTS & 1


# fmt: off
@gluon.jit
def _load(desc, first, tiles, full, empty, place):
    """Fetch the box that begins there as soon as its slot is empty; at first all are."""
    SLOTS: gl.constexpr = tiles.shape[0]
    slot = _slot(place, SLOTS)
    mbarrier.wait(empty.index(slot), _turn(place, SLOTS) ^ 1)
    mbarrier.expect(full.index(slot), desc.block_type.nbytes)
    _fetch(desc, first, full.index(slot), tiles.index(slot).reshape(desc.block_type.shape))


@gluon.jit
def _produce(x_desc, weight_desc, tiles, full, empty, image, top, left, o, channels):
    """Fetch what each group of products takes, in that order: row, weight, row, weight, row, weight, row."""
    BLOCK_K: gl.constexpr = x_desc.block_shape[3]
    place = 0
    for right in range(3):
        for c in range(0, channels, BLOCK_K):
            for down in gl.static_range(4):
                _load(x_desc, [image, top + down, left + right, c], tiles, full, empty, place)
                place += 1
                if down < 3:
                    _load(weight_desc, [o, (3 * down + right) * channels + c], tiles, full, empty, place)
                    place += 1


@gluon.jit
def _tile(tiles, full, place):
    """That of a place, when it is there."""
    SLOTS: gl.constexpr = tiles.shape[0]
    slot = _slot(place, SLOTS)
    mbarrier.wait(full.index(slot), _turn(place, SLOTS))
    return tiles.index(slot)


@gluon.jit
def _release(empty, place, pred=True):
    SLOTS: gl.constexpr = empty.shape[0]
    mbarrier.arrive(empty.index(_slot(place, SLOTS)), count=1, pred=pred)


@gluon.jit
def _consume(
    y_desc, rows_ptr, residual_ptr, tiles, full, empty, scale, clip, image, row, column, o, groups,
    images, height, width, outputs, ROWS: gl.constexpr, RESIDUAL: gl.constexpr,
):
    """Multiply for two rows of pixels, the last products in flight, and write them, 64 outputs at a time."""
    SLOTS: gl.constexpr = tiles.shape[0]
    BLOCK_M: gl.constexpr = tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_M, 16])
    upper = gl.zeros((BLOCK_M, BLOCK_M), gl.float32, LAYOUT)
    lower = gl.zeros((BLOCK_M, BLOCK_M), gl.float32, LAYOUT)
    for group in range(groups):
        place = 7 * group
        x = _tile(tiles, full, place)
        weight = _tile(tiles, full, place + 1)
        upper = warpgroup_mma(x, weight.permute((1, 0)), upper, is_async=True)
        upper, lower = warpgroup_mma_wait(1, deps=(upper, lower))
        # all products but these have been taken, those of the group before, too
        _release(empty, place + SLOTS - 2, group > 0)
        _release(empty, place + SLOTS - 1, group > 0)
        for down in gl.static_range(1, 4):
            x = _tile(tiles, full, place + 2 * down)
            lower = warpgroup_mma(x, weight.permute((1, 0)), lower, is_async=True)
            upper, lower = warpgroup_mma_wait(1, deps=(upper, lower))
            _release(empty, place + 2 * down - 2)  # the row before
            if down < 3:
                weight = _tile(tiles, full, place + 2 * down + 1)
                upper = warpgroup_mma(x, weight.permute((1, 0)), upper, is_async=True)
                upper, lower = warpgroup_mma_wait(1, deps=(upper, lower))
                _release(empty, place + 2 * down - 1)  # the weight before
    upper, lower = warpgroup_mma_wait(0, deps=(upper, lower))
    _meet()  # all warps: the slots now serve for results
    _write_row(
        upper, 0, y_desc, rows_ptr, residual_ptr, tiles, scale, clip, image, row, column, o,
        images, height, width, outputs, ROWS, RESIDUAL,
    )
    _write_row(
        lower, 2, y_desc, rows_ptr, residual_ptr, tiles, scale, clip, image, row + 1, column, o,
        images, height, width, outputs, ROWS, RESIDUAL,
    )
    tma.store_wait(0)


@gluon.jit
def _halves(total, SIZE: gl.constexpr):
    """Left and right; no number leaves its thread."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, SIZE, 16])
    left, right = gl.split(total.reshape([total.shape[0], 2, SIZE]).permute((0, 2, 1)))
    return gl.convert_layout(left, LAYOUT), gl.convert_layout(right, LAYOUT)


@gluon.jit
def _write_row(
    total, SLOT: gl.constexpr, y_desc, rows_ptr, residual_ptr, tiles, scale, clip, image, row, column, o,
    images, height, width, outputs, ROWS: gl.constexpr, RESIDUAL: gl.constexpr,
):
    left, right = _halves(total, 64)
    _write(
        left, SLOT, y_desc, rows_ptr, residual_ptr, tiles, scale, clip, image, row, column, o,
        images, height, width, outputs, ROWS, RESIDUAL,
    )
    _write(
        right, SLOT + 1, y_desc, rows_ptr, residual_ptr, tiles, scale, clip, image, row, column, o + 64,
        images, height, width, outputs, ROWS, RESIDUAL,
    )


@gluon.jit
def _write(
    total, SLOT: gl.constexpr, y_desc, rows_ptr, residual_ptr, tiles, scale, clip, image, row, column, o,
    images, height, width, outputs, ROWS: gl.constexpr, RESIDUAL: gl.constexpr,
):
    """y of 64 outputs of a row, by way of a slot; TMA leaves out what is no image, no row and no output."""
    BLOCK_M: gl.constexpr = total.shape[0]
    BLOCK_N: gl.constexpr = total.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_N, 16])
    WIDE: gl.constexpr = y_desc.block_shape[2]
    m = gl.arange(0, BLOCK_M, gl.SliceLayout(1, LAYOUT))
    n = o + gl.arange(0, BLOCK_N, gl.SliceLayout(0, LAYOUT))
    mask = ((image + m // WIDE < images) & (row < height))[:, None] & (n < outputs)[None, :]
    if ROWS == 1:
        total += gl.load(rows_ptr + n, mask=n < outputs, other=0.0).to(gl.float32)[None, :]
    elif ROWS == 2:
        own = ((image + m // WIDE) * outputs)[:, None] + n[None, :]
        total += gl.load(rows_ptr + own, mask=mask, other=0.0).to(gl.float32)
    if RESIDUAL:
        first = ((image.to(gl.int64) * height + row) * width + column) * outputs
        offset = (m // WIDE * height * width + m % WIDE) * outputs
        residual = gl.load(residual_ptr + first + (offset[:, None] + n[None, :]), mask=mask, other=0.0)
        total += residual.to(gl.float32)
    total *= scale
    if clip is not None:
        total = gl.where(gl.abs(total) > clip, gl.where(total > 0, clip, -clip), total)
    y_tile = tiles.index(SLOT)
    y_tile.store(total.to(y_desc.dtype))
    fence_async_shared()
    _send(y_desc, [image, row, column, o], y_tile.reshape(y_desc.block_type.shape))


@gluon.jit
def _conv2d_fwd_boxes(
    y_desc,  # (N, height, width, outputs), as all sizes below
    x_desc,  # (N, height, width, channels), its own height and width
    weight_desc,  # (outputs, 9 channels)
    rows_ptr, residual_ptr, scale, clip, images, height, width, channels, outputs, padding,
    SLOTS: gl.constexpr, ROWS: gl.constexpr, RESIDUAL: gl.constexpr,
):
    IMAGES: gl.constexpr = x_desc.block_shape[0]
    WIDE: gl.constexpr = x_desc.block_shape[2]
    BLOCK_K: gl.constexpr = x_desc.block_shape[3]
    BLOCK_N: gl.constexpr = weight_desc.block_shape[0]
    tiles_n, across, down = gl.cdiv(outputs, BLOCK_N), gl.cdiv(width, WIDE), gl.cdiv(height, 2)
    o = gl.program_id(0) % tiles_n * BLOCK_N
    index = gl.program_id(0) // tiles_n
    column = index % across * WIDE
    row = index // across % down * 2
    image = index // (across * down) * IMAGES
    tiles = gl.allocate_shared_memory(
        weight_desc.dtype, [SLOTS] + weight_desc.block_type.shape, weight_desc.layout
    )
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    fence_async_shared()  # TMA sees them
    groups = 3 * (channels // BLOCK_K)
    gl.warp_specialize(
        [
            (_consume, (
                y_desc, rows_ptr, residual_ptr, tiles, full, empty, scale, clip, image, row, column, o, groups,
                images, height, width, outputs, ROWS, RESIDUAL,
            )),
            (_produce, (
                x_desc, weight_desc, tiles, full, empty, image, row - padding, column - padding, o, channels,
            )),
        ],
        [1],  # warps of the producer
        [24],  # its registers: the others have the rest
    )
# fmt: on


def variant(b: Box, dtype: torch.dtype = torch.float16, rows: int = 1, clip: bool = False) -> Variant:
    """The specialisation for these sizes, as the tests compile it."""
    element, (pixels, of_weight) = TYPES[dtype], layouts()
    shape = f"[{b.images}, 1, {b.columns}, {CHANNELS}]"
    signature = {name: f"tensordesc<{element}{shape},{pixels!r}>" for name in ("y_desc", "x_desc")}
    signature["weight_desc"] = f"tensordesc<{element}[{PIXELS}, {CHANNELS}],{of_weight!r}>"
    signature |= {"rows_ptr": f"*{element}", "residual_ptr": f"*{element}", "scale": "fp32"}
    signature |= dict.fromkeys(("images", "height", "width", "channels", "outputs", "padding"), "i32")
    constants = {"SLOTS": SLOTS, "ROWS": rows, "RESIDUAL": True, **({} if clip else {"clip": None})}
    signature |= {"clip": "fp32"} if clip else {}
    aligned = ("rows_ptr", "residual_ptr", "height", "width", "channels", "outputs")
    return Variant(_conv2d_fwd_boxes, signature, constants, aligned, WARPS, matrix_products=True, chips=("sm_90a",))
