"""upfirdn in Triton: one linear map and its adjoint, y[i] for images that lie channels last or contiguous.

    down: y[i] = gain sum_k x[factor i - padding + k] f[k]        up: y[i] = gain sum_j x[j] f[i + padding - factor j]

per axis, zeros outside. A program makes a tile of (pixels, channels), or of (rows, pixels of a row) where images are
contiguous. Memory-bound: each output is written once, each input read once (filters of two taps, down) or a few times
from the caches; channels last in accesses of 16 bytes. Sums in float32, of float64 images in float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edm_fast.kernels._launch import Variant, on_device

TILE_BYTES = 4096  # of the output, for a program of four warps: two accesses of 16 bytes for each thread
UNROLLED = 4  # taps of an axis


@triton.jit
def _tap(
    total, x_ptr, f_ptr, qy, qx, channel, inside, a, b, height, width, step, gain,
    TAPS: tl.constexpr, UP: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """total + x f for the (a, b)-th input pixel of each output; qy and qx lead from the output to its inputs."""
    if UP:
        ky, kx = qy % FACTOR + a * FACTOR, qx % FACTOR + b * FACTOR
        r, s = qy // FACTOR - a, qx // FACTOR - b
        inside &= (ky < TAPS) & (kx < TAPS)
        f = tl.load(f_ptr + ky * TAPS + kx, mask=(ky < TAPS) & (kx < TAPS), other=0.0)
    else:
        r, s = qy + a, qx + b
        f = tl.load(f_ptr + a * TAPS + b)
    inside &= (r >= 0) & (r < height) & (s >= 0) & (s < width)
    x = tl.load(x_ptr + (r.to(tl.int64) * width + s) * step + channel, mask=inside, other=0.0)
    return total + x.to(total.dtype) * (f.to(total.dtype) * gain)


@triton.jit
def _upfirdn_fwd(
    y_ptr, x_ptr, f_ptr, images, height, width, out_height, out_width, channels, row_blocks, gain,
    TAPS: tl.constexpr, UP: tl.constexpr, FACTOR: tl.constexpr, PADDING: tl.constexpr, LAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """LAST: images (N, H, W, C), rows are pixels of one and columns channels; otherwise rows are those of all planes
    (N C, H, W), and columns their pixels."""
    ELEMENT: tl.constexpr = y_ptr.dtype.element_ty
    SUM: tl.constexpr = tl.float64 if ELEMENT == tl.float64 else tl.float32
    STEPS: tl.constexpr = (TAPS + FACTOR - 1) // FACTOR if UP else TAPS
    row = tl.arange(0, BLOCK_ROWS)[:, None]
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    if LAST:
        image, row = (tl.program_id(0) // row_blocks).to(tl.int64), (tl.program_id(0) % row_blocks) * BLOCK_ROWS + row
        i, j = row // out_width, row % out_width
        inside, step, channel = (i < out_height) & (columns < channels), channels, columns
        x_ptr += image * height * width * channels
        y_ptr += image * out_height * out_width * channels
        y_offsets = row.to(tl.int64) * channels + columns
    else:
        row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + row
        i, j = (row % out_height).to(tl.int32), columns
        inside, step, channel = (row // out_height < images) & (j < out_width), 1, row // out_height * height * width
        y_offsets = row * out_width + columns
    qy = i + PADDING if UP else i * FACTOR - PADDING
    qx = j + PADDING if UP else j * FACTOR - PADDING
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), SUM)
    if UNROLL:
        for a in tl.static_range(STEPS):
            for b in tl.static_range(STEPS):
                total = _tap(
                    total, x_ptr, f_ptr, qy, qx, channel, inside, a, b, height, width, step, gain, TAPS, UP, FACTOR
                )
    else:
        for tap in range(STEPS * STEPS):
            total = _tap(
                total, x_ptr, f_ptr, qy, qx, channel, inside, tap // STEPS, tap % STEPS, height, width, step, gain,
                TAPS, UP, FACTOR,
            )  # fmt: skip
    tl.store(y_ptr + y_offsets, total.to(ELEMENT), mask=inside)


def tile(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Block sizes for an image of so many rows and columns of elements of `size` bytes.

    Columns, which are next to each other in memory, first: up to 128 and a power of two that leaves little over. The
    rest of TILE_BYTES goes to rows, as far as there are any.
    """
    wide = min(128, triton.next_power_of_2(columns))
    while wide > 128 // size and columns % wide:
        wide //= 2
    return min(max(TILE_BYTES // size // wide, 1), triton.next_power_of_2(rows)), wide


def forward(
    y: torch.Tensor, x: torch.Tensor, f: torch.Tensor, up: bool, factor: int, padding: int, gain: float, last: bool
) -> None:
    """Write y (N, C, *size); x and y are channels last, or contiguous if not `last`, and f (K, K) is of their dtype."""
    n, c, height, width = x.shape
    out_height, out_width = y.shape[2:]
    if y.numel() == 0:
        return
    rows, columns = (out_height * out_width, c) if last else (n * c * out_height, out_width)
    block_rows, block_columns = tile(rows, columns, y.element_size())
    row_blocks = triton.cdiv(rows, block_rows)
    taps = f.shape[0]
    with on_device(x):
        _upfirdn_fwd[(row_blocks * (n if last else 1), triton.cdiv(columns, block_columns))](
            y, x, f, n if last else n * c, height, width, out_height, out_width, c, row_blocks, gain,
            TAPS=taps, UP=up, FACTOR=factor, PADDING=padding, LAST=last,
            BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns, UNROLL=taps <= UNROLLED,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _variant(
    element: str, size: int, up: bool, taps: int, image: int, channels: int = 256, last: bool = True
) -> Variant:
    """A layer whose outputs are 64 images of image x image pixels."""
    pointers = ("y_ptr", "x_ptr", "f_ptr")
    sizes = ("images", "height", "width", "out_height", "out_width", "channels", "row_blocks")
    rows, columns = (image * image, channels) if last else (64 * channels * image, image)
    block_rows, block_columns = tile(rows, columns, size)
    values = {
        "images": 64 if last else 64 * channels,
        "height": image // 2 if up else 2 * image,
        "channels": channels,
        "row_blocks": -(-rows // block_rows),
    }
    values |= {"out_height": image, "out_width": image, "width": values["height"]}
    constants: dict[str, Any] = {"TAPS": taps, "UP": up, "FACTOR": 2, "PADDING": taps // 2 - 1, "LAST": last}
    constants |= {"BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns, "UNROLL": taps <= UNROLLED}
    constants |= {name: 1 for name in sizes if values[name] == 1}  # as launches take an argument of 1
    signature = {name: f"*{element}" for name in pointers} | {n: "i32" for n in sizes if values[n] != 1}
    aligned = (*pointers, *(n for n in sizes if values[n] % 16 == 0))
    return Variant(_upfirdn_fwd, {**signature, "gain": "fp32"}, constants, aligned, wide_loads=last)


def variants() -> dict[str, Variant]:
    """The filters of DDPM++ and ADM (2 taps) and NCSN++ (4 taps); up is also the backward of down, and the reverse."""
    return {
        "down_k2_fp16_c256_hw256": _variant("fp16", 2, False, 2, 16),
        "down_k4_fp16_c256_hw256": _variant("fp16", 2, False, 4, 16),
        "up_k2_fp16_c256_hw1024": _variant("fp16", 2, True, 2, 32),
        "up_k4_fp16_c256_hw1024": _variant("fp16", 2, True, 4, 32),
        "up_k4_bf16_c256_hw1024": _variant("bf16", 2, True, 4, 32),
        "down_k2_fp16_c192_hw1024": _variant("fp16", 2, False, 2, 32, channels=192),
        "up_k2_fp16_c576_hw1024": _variant("fp16", 2, True, 2, 32, channels=576),
        "down_k2_fp32_c256_hw256": _variant("fp32", 4, False, 2, 16),
        "up_k4_fp32_c256_hw1024": _variant("fp32", 4, True, 4, 32),
        "down_k4_fp64_c256_hw256": _variant("fp64", 8, False, 4, 16),
        "up_k4_fp16_contiguous_hw1024": _variant("fp16", 2, True, 4, 32, last=False),
        "down_k12_fp32_contiguous_hw1024": _variant("fp32", 4, False, 12, 32, last=False),
    }
