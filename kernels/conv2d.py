"""conv2d in Triton: implicit GEMM on images that lie channels last, in float16, bfloat16 or float32, summed in float32.

    y = (weight * x + rows + residual) scale            x: (N, C, H, W); weight as `pack` gives it; rows: (1 or N, O)

Float32 runs on TF32 matrix units where torch.backends.cudnn.allow_tf32 says so, as the reference's convolution does,
and on plain multiply-adds otherwise. Inference may have the norm before the convolution (`Prologue`), or a `Factor`,
applied as x is read, y kept within +-clip, and the statistics of the norm after it taken as y is written.

A nearest-neighbour upsampling by 2 and a 3x3 convolution after it are four 2x2 convolutions, one for each phase of the
output's pixels (`pack_phases`, `upsample`): where taps read the same pixel their weights are added first, which leaves
16 products of the 36 for 4 outputs, and the large image is never written. The filter [1, 3, 3, 1] has no such gain:
each phase still reads 3x3 pixels, and at the border the zeros around the large image are no filtered ones.

On Hopper `in_boxes` computes the same with its own units, in Gluon, where `boxes_reason` does not say why not. A 3x3
convolution with fewer products is `winograd`, and `finish` is the tail after a convolution of another library,
`finish_gradients` its backward.
`Float8` is for an experiment, `_conv2d_float8`.

An image's result does not depend on its batch while the blocks are the same (`_conv2d_blocks`: they follow the number
of pixels); give `plan` to keep them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import triton

from edm_fast.kernels import _conv2d_products, _conv2d_tail, _conv2d_tuned, _launch
from edm_fast.kernels._conv2d_blocks import Blocks, blocks, weight_blocks
from edm_fast.kernels._conv2d_prologue import Factor, Prologue, affine_of, images_last
from edm_fast.kernels._conv2d_tail import Statistics, moments, options
from edm_fast.kernels._conv2d_tuned import tuned
from edm_fast.kernels._conv2d_variants import variants
from edm_fast.kernels._conv2d_winograd import forward as winograd
from edm_fast.kernels._conv2d_winograd import pack as pack_winograd
from edm_fast.kernels._launch import on_device

__all__ = [
    "Blocks",
    "Factor",
    "Float8",
    "Prologue",
    "Statistics",
    "boxes_reason",
    "early_reason",
    "finish",
    "finish_gradients",
    "forward",
    "in_boxes",
    "pack",
    "pack_phases",
    "pack_winograd",
    "upsample",
    "variants",
    "weight_gradient",
    "winograd",
]


FINISH_TILE = 64, 64  # pixels and outputs of a program that has no products
GRADIENT_PROGRAMS = 1024  # that `finish_gradients` cuts its work for: eight for each multiprocessor


@dataclasses.dataclass(frozen=True)
class Float8:
    """Of x and a weight in float8: what their sums are multiplied with (O,) float32, and the dtype of y."""

    factors: torch.Tensor
    dtype: torch.dtype


def pack(weight: torch.Tensor, dtype: torch.dtype | None = None, transposed: bool = False) -> torch.Tensor:
    """Weight (O, C, k, k) -> (O, k, k, C) contiguous: a step along the sum reads 16 bytes at a time.

    `transposed`: of the adjoint, (C, k, k, O) with the taps reversed; dx is its convolution of dy, padded by
    k - 1 - padding.
    """
    if transposed:
        weight = weight.flip(2, 3).transpose(0, 1)
    return weight.to(dtype or weight.dtype).permute(0, 2, 3, 1).contiguous()


def pack_phases(weight: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Weight (O, C, 3, 3) -> (4, O, 2, 2, C): of each phase 2 a + b, for `upsample`.

    Per axis, output 2 h + a reads the pixels floor((2 h + a + t - 1) / 2) for t = 0, 1, 2: h - 1, h, h if a = 0, and
    h, h, h + 1 if a = 1. Sums are taken in float32.
    """
    first, middle, last = weight.float().unbind(2)  # (O, C, 3): rows of taps
    rows = [(first, middle + last), (first + middle, last)]
    phases = []
    for pair in rows:
        columns = [t.unbind(2) for t in pair]  # (O, C) each
        even = torch.stack([torch.stack((c[0], c[1] + c[2]), 1) for c in columns], 1)  # (O, 2, 2, C)
        odd = torch.stack([torch.stack((c[0] + c[1], c[2]), 1) for c in columns], 1)
        phases += [even, odd]
    return torch.stack(phases).to(dtype or weight.dtype).contiguous()


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: "tf32" where torch's own convolutions take it, otherwise "ieee"."""
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def _plain(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and precision(dtype) == "ieee"


def _run(
    x: torch.Tensor,
    packed: torch.Tensor,  # (phases, O, k, k, C)
    tail: tuple[torch.Tensor | None, torch.Tensor | None, float, float | None],
    padding: int,
    prologue: Prologue | Factor | None,
    statistics: Statistics | None,
    plan: Blocks | None,
    float8: Float8 | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    phases, outputs, k, _, c = packed.shape
    n, _, h, w = x.shape
    high, wide, side = (h, w, 2) if phases == 4 else (h + 2 * padding - k + 1, w + 2 * padding - k + 1, 1)
    shape = (n, outputs, side * high, side * wide)
    dtype = x.dtype if float8 is None else float8.dtype
    y = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
    if y.numel() == 0:
        return y if statistics is None else (y, moments(y, statistics))
    rows, residual, scale, clip = tail
    rows, factors = (None if t is None else t.contiguous() for t in (rows, None if float8 is None else float8.factors))
    x, residual = images_last(x), None if residual is None else images_last(residual)
    area = high * wide
    pixels = n * area
    area_of_tile = area if prologue is not None else 0
    measured = tuned(x, pixels, outputs, c, k * k, phases) if prologue is None else None
    b = plan or measured or blocks(pixels, outputs, c, k * k, x.dtype, _plain(x.dtype), phases, area_of_tile)
    part = math.gcd(area, b.m) if statistics is not None else 0
    single: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    sums = torch.empty((n, phases * area // part, 2, outputs), **single) if part else None
    partial = torch.empty((b.splits, phases, pixels, outputs), **single) if b.splits > 1 else None
    steps = triton.cdiv(triton.cdiv(k * k * c, b.k), b.splits)
    finish = {"PHASES": phases, "PART": part, "BLOCK_M": b.m, "BLOCK_N": b.n, **options(rows, residual)}
    with on_device(x):
        affine = None if prologue is None else affine_of(prologue, n, c, x.device)
        tiles_m, tiles_n = triton.cdiv(pixels, b.m), triton.cdiv(outputs, b.n)
        # fmt: off
        _conv2d_products._conv2d_fwd[tiles_m * tiles_n, phases, b.splits](
            y, x, packed, rows, residual, affine, factors, partial, sums, scale, clip,
            n, h, w, high, wide, c, outputs, padding, None, None, steps,
            KERNEL=k, BLOCK_K=b.k, SPLIT=b.splits > 1, EVEN=c % b.k == 0, AFFINE=affine is not None,
            SILU=prologue is not None and prologue.silu, ONE_IMAGE=area % b.m == 0, PADDED=k > 1 or padding > 0,
            PRECISION=precision(x.dtype), EARLY=False, num_warps=b.warps, num_stages=b.stages, **finish,
        )
        if partial is not None:
            _conv2d_tail._conv2d_reduce[tiles_m, tiles_n, phases](
                y, partial, rows, residual, sums, scale, clip, b.splits, pixels, area, wide, outputs, **finish
            )
        # fmt: on
        return y if statistics is None or sums is None else (y, moments(y, statistics, sums, part))


def forward(
    x: torch.Tensor,
    packed: torch.Tensor,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int = 0,
    *,
    clip: float | None = None,
    prologue: Prologue | Factor | None = None,
    statistics: Statistics | None = None,
    plan: Blocks | None = None,
    float8: Float8 | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Convolve x (N, C, H, W) with packed (O, k, k, C); with `statistics` also mean and rstd (2, N, groups) of y."""
    return _run(x, packed[None], (rows, residual, scale, clip), padding, prologue, statistics, plan, float8)


def boxes_reason(x: torch.Tensor, weight: torch.Tensor, padding: int, proved: bool = False) -> str | None:
    """Why `in_boxes` does not take a convolution of x with weight (O, C, k, k), or None. It has to be `proved` by the
    sweep on the chip at hand first."""
    try:
        from edm_fast.kernels import _conv2d_gluon  # late: not every Triton has what it takes
    except (ImportError, AttributeError) as error:
        return f"this Triton has no such Gluon: {error}"
    why = _conv2d_gluon.reason(x, weight, padding)
    return why if why is not None or proved else _conv2d_tuned.unproved("boxes", x.device)


def early_reason(device: torch.device, proved: bool = False) -> str | None:
    """Why `winograd` is not taken with `early` there, or None; `proved` as above."""
    why = _launch.early_reason(device)
    return why if why is not None or proved else _conv2d_tuned.unproved("winograd-early", device)


def in_boxes(
    x: torch.Tensor,
    packed: torch.Tensor,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int = 0,
    *,
    clip: float | None = None,
) -> torch.Tensor:
    """`forward` in half precision, by TMA and warps of their own for it (`_conv2d_gluon`)."""
    from edm_fast.kernels import _conv2d_gluon

    return _conv2d_gluon.forward(x, packed, rows, residual, scale, padding, clip=clip)


def upsample(
    x: torch.Tensor,
    packed: torch.Tensor,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    *,
    clip: float | None = None,
    prologue: Prologue | Factor | None = None,
    statistics: Statistics | None = None,
    plan: Blocks | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The 3x3 convolution, padded by 1, of x (N, C, H, W) with each pixel repeated 2x2: y (N, O, 2 H, 2 W).

    packed: (4, O, 2, 2, C) of `pack_phases`. A prologue comes before the repetition, with which it commutes.
    """
    return _run(x, packed, (rows, residual, scale, clip), 1, prologue, statistics, plan)


def finish(
    y: torch.Tensor,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    *,
    clip: float | None = None,
    statistics: Statistics | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(y + rows + residual) scale in one pass, in place where y (N, O, H, W) lies channels last: the tail alone, of
    sums that a library has taken."""
    y = images_last(y)
    if y.numel() == 0:
        return y if statistics is None else (y, moments(y, statistics))
    rows, residual = None if rows is None else rows.contiguous(), None if residual is None else images_last(residual)
    n, outputs, high, wide = y.shape
    area, (m, k) = high * wide, FINISH_TILE
    part = math.gcd(area, m) if statistics is not None else 0
    sums = torch.empty((n, area // part, 2, outputs), dtype=torch.float32, device=y.device) if part else None
    finish = {"PHASES": 1, "PART": part, "BLOCK_M": m, "BLOCK_N": k, **options(rows, residual)}
    with on_device(y):
        grid = triton.cdiv(n * area, m), triton.cdiv(outputs, k), 1
        _conv2d_tail._conv2d_reduce[grid](
            y, y, rows, residual, sums, scale, clip, 1, n * area, area, wide, outputs, **finish
        )
        return y if statistics is None or sums is None else (y, moments(y, statistics, sums, part))


def finish_gradients(dy: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor | None, torch.Tensor]:
    """dy scale (None where that is dy itself) and its sums over pixels (N, O) float32, in one pass over dy.

    The latter are the gradients of `rows`, the former that of the sums that came in, and of the residual.
    """
    n, outputs, high, wide = dy.shape
    dy, area, (m, k) = images_last(dy), high * wide, FINISH_TILE
    programs = max(1, n * triton.cdiv(outputs, k))
    parts = max(1, min(triton.cdiv(GRADIENT_PROGRAMS, programs), triton.cdiv(area, m)))
    share = triton.cdiv(triton.cdiv(area, parts), m) * m
    scaled = None if scale == 1.0 else torch.empty_like(dy)
    sums = torch.empty((n, parts, outputs), dtype=torch.float32, device=dy.device)
    if dy.numel() > 0:
        with on_device(dy):
            _conv2d_tail._conv2d_tail_bwd[n * parts, triton.cdiv(outputs, k)](
                scaled, sums, dy, scale, parts, share, area, outputs, BLOCK_M=m, BLOCK_N=k
            )
    return scaled, sums[:, 0] if parts == 1 else sums.sum(1)


def weight_gradient(dy: torch.Tensor, x: torch.Tensor, kernel: int, padding: int) -> torch.Tensor:
    """(O, C, k, k): the gradient of the weight of y = weight * x, of dy (N, O, H', W')."""
    (n, c, h, w), (outputs, high, wide) = x.shape, dy.shape[1:]
    dweight = torch.empty((outputs, c, kernel, kernel), dtype=x.dtype, device=x.device)
    if x.numel() == 0 or dweight.numel() == 0:
        return dweight.zero_()
    dy, x = images_last(dy), images_last(x)
    taps, pixels = kernel * kernel, n * high * wide
    b = weight_blocks(pixels, outputs, c, taps, x.dtype, _plain(x.dtype))
    share = triton.cdiv(triton.cdiv(pixels, b.splits), b.k) * b.k
    partial = torch.empty((b.splits, outputs, taps, c), dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(outputs, b.m) * triton.cdiv(taps * c, b.n)
    sizes = {"GRID_HEIGHT": high, "GRID_WIDTH": wide, "KERNEL": kernel, "BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_K": b.k}
    with on_device(x):
        # fmt: off
        _conv2d_products._conv2d_bwd_weight[tiles, b.splits](
            partial, dy, x, n, h, w, c, outputs, padding, share,
            EVEN=c % b.n == 0, PRECISION=precision(x.dtype), num_warps=b.warps, num_stages=b.stages, **sizes,
        )
        # fmt: on
        _conv2d_products._conv2d_reduce_weight[triton.cdiv(dweight.numel(), 1024),](
            dweight, partial, b.splits, dweight.numel(), c, TAPS=taps, BLOCK=1024
        )
    return dweight
