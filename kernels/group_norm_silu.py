"""group_norm_silu in Triton: u = (x - mean_g) rstd_g; m = shift + (u weight + bias)(scale + 1); y = m sigmoid(m).

Images in float16, bfloat16 or float32, channels last or contiguous; statistics, and everything between load and store,
in float32. Forward in one pass where a few groups of an image fit into registers: x is read once. Otherwise in two:
each chunk of pixels gives the mean and the squared deviations of each channel, these are joined per group (Chan et al.
1983), and a second pass applies them. Backward needs, of each channel and image, A = sum dm and B = sum dm u alone:

    dx = rstd (du - (sum_g du + u sum_g du u) / size_g),  du = dm (scale + 1) weight
    dshift = A, dscale = weight B + bias A, dbias = sum_n (scale + 1) A, dweight = sum_n (scale + 1) B

All sums are taken in a fixed order. Memory-bound: forward moves 2 (one pass) or 3 images, backward 5.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from edm_fast.kernels import _group_norm_silu_passes as passes
from edm_fast.kernels._launch import Variant, on_device

TILE = 4096  # elements of a program of four warps: 32 of each thread
ONE_PASS = 16384  # elements of one with eight
MAX_CHUNKS = 128


def tile(space: int, channels: int, last: bool) -> tuple[int, int]:
    """(BLOCK_P, BLOCK_C) for TILE elements: what is next to each other in memory first, at least 64 of it if there."""
    if last:
        block_c = min(triton.next_power_of_2(channels), 256)
        while block_c > 64 and channels % block_c:
            block_c //= 2  # such as 64 for 192 channels: nothing is left over
        return min(max(TILE // block_c, 1), triton.next_power_of_2(space)), block_c
    block_p = min(triton.next_power_of_2(space), 1024)
    return block_p, min(max(TILE // block_p, 1), triton.next_power_of_2(channels))


def chunk(space: int, block_p: int) -> int:
    """Pixels of one chunk: those of a tile, as many as there are of it."""
    return max(block_p, triton.next_power_of_2(triton.cdiv(space, MAX_CHUNKS)))


def one_pass(space: int, channels: int, groups: int, size: int, last: bool) -> tuple[int, int] | None:
    """(BLOCK_P, BLOCK_G) of the kernel that reads x once, for elements of `size` bytes; None where it does not fit.

    In channels last, groups of fewer than 32 bytes, what memory hands out at once, go together.
    """
    per_group = channels // groups
    block_p = triton.next_power_of_2(space)
    if per_group & (per_group - 1):
        return None
    block_g = max(1, 32 // size // per_group) if last else 1
    while block_p * per_group * block_g < 1024 and block_g < groups:
        block_g *= 2
    return (block_p, block_g) if block_p * per_group * block_g <= ONE_PASS else None


def _flat(x: torch.Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _vectors(parameters: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """weight, bias, scale, shift, contiguous, and the numbers of rows of the last two."""
    weight, bias, scale, shift = (None if t is None else t.contiguous() for t in parameters)
    rows = {"scale_rows": 1 if scale is None else scale.shape[0], "shift_rows": 1 if shift is None else shift.shape[0]}
    return (weight, bias, scale, shift), rows


def moments(x: torch.Tensor, groups: int, eps: float, last: bool) -> torch.Tensor:
    """(2, N, groups) float32: mean and 1 / sqrt(var + eps) of x (N, C, *spatial), channels last or contiguous."""
    n, c, space = _flat(x)
    block_p, block_c = tile(space, c, last)
    block_p = chunk(space, block_p)
    chunks = triton.cdiv(space, block_p)
    partial = torch.empty((n, chunks, 2, c), dtype=torch.float32, device=x.device)
    stats = torch.empty((2, n, groups), dtype=torch.float32, device=x.device)
    with on_device(x):
        passes._group_norm_silu_moments[chunks, triton.cdiv(c, block_c), n](
            partial, x, space, c, chunks, LAST=last, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4
        )
        block_g = triton.next_power_of_2(c // groups)
        passes._group_norm_silu_join[groups, n](
            stats, partial, eps, space, c, chunks, groups, block_p, BLOCK_R=16, BLOCK_G=block_g, num_warps=1
        )
    return stats


def apply(x: torch.Tensor, stats: torch.Tensor, parameters: Any, groups: int, silu: bool, last: bool) -> torch.Tensor:
    """y of statistics (2, N, groups), which x's producer may have taken. parameters: weight, bias, scale, shift."""
    n, c, space = _flat(x)
    y = torch.empty_like(x)
    block_p, block_c = tile(space, c, last)
    vectors, rows = _vectors(parameters)
    with on_device(x):
        passes._group_norm_silu_fwd[triton.cdiv(space, block_p), triton.cdiv(c, block_c), n](
            y, x, stats, *vectors, space, c, groups, **rows,
            LAST=last, ADAPTIVE=vectors[2] is not None, SILU=silu, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return y


def forward(
    x: torch.Tensor, parameters: Any, groups: int, eps: float, silu: bool, last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """y as x (N, C, *spatial), channels last or contiguous, and stats (2, N, groups) float32: mean and rstd."""
    n, c, space = _flat(x)
    blocks = one_pass(space, c, groups, x.element_size(), last)
    if blocks is None:
        stats = moments(x, groups, eps, last)
        return apply(x, stats, parameters, groups, silu, last), stats
    y, stats = torch.empty_like(x), torch.empty((2, n, groups), dtype=torch.float32, device=x.device)
    vectors, rows = _vectors(parameters)
    elements = blocks[0] * blocks[1] * (c // groups)
    with on_device(x):
        passes._group_norm_silu_fwd_once[triton.cdiv(groups, blocks[1]), n](
            y, x, stats, *vectors, eps, space, c, groups, **rows, LAST=last, ADAPTIVE=vectors[2] is not None,
            SILU=silu, BLOCK_P=blocks[0], BLOCK_G=blocks[1], SIZE=c // groups, num_warps=_warps(elements),
        )  # fmt: skip
    return y, stats


def _warps(elements: int) -> int:
    return max(1, min(8, elements // 1024))


def backward(
    dy: torch.Tensor, stats: torch.Tensor, x: torch.Tensor, parameters: Any, groups: int, silu: bool, last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, and dparams (rows, C) float32: dweight, dbias, the rows of dscale, the rows of dshift."""
    n, c, space = _flat(x)
    block_p, block_c = tile(space, c, last)
    chunks = triton.cdiv(space, block_p)
    single: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    partial, sums = torch.empty((n, chunks, 2, c), **single), torch.empty((n, 2, c), **single)
    means, dx = torch.empty((2, n, groups), **single), torch.empty_like(x)
    vectors, rows = _vectors(parameters)
    flags = {"LAST": last, "ADAPTIVE": vectors[2] is not None, "SILU": silu, "BLOCK_P": block_p, "BLOCK_C": block_c}
    grid = (chunks, triton.cdiv(c, block_c), n)
    weight, bias, scale, shift = vectors
    with on_device(x):
        passes._group_norm_silu_bwd_sums[grid](
            partial, dy, x, stats, *vectors, space, c, groups, **rows, chunks=chunks, **flags, num_warps=4
        )
        passes._group_norm_silu_bwd_join[groups, n](
            sums, means, partial, weight, scale, space, c, chunks, groups, rows["scale_rows"],
            ADAPTIVE=flags["ADAPTIVE"], BLOCK_R=16, BLOCK_G=triton.next_power_of_2(c // groups), num_warps=1,
        )  # fmt: skip
        passes._group_norm_silu_bwd[grid](
            dx, dy, x, stats, means, *vectors, space, c, groups, **rows, **flags, num_warps=4
        )
    a, b = sums.unbind(1)  # (N, C) each
    if scale is None:
        return dx, torch.stack((b.sum(0), a.sum(0)))
    factor = scale.float() + 1
    dscale, dshift = a * bias.float() + b * weight.float(), a
    parts = [(factor * b).sum(0, keepdim=True), (factor * a).sum(0, keepdim=True)]
    parts += [d if len(t) == n else d.sum(0, keepdim=True) for d, t in ((dscale, scale), (dshift, shift))]
    return dx, torch.cat(parts)


def _signature(element: str, pointers: tuple[str, ...], singles: tuple[str, ...]) -> dict[str, str]:
    vectors = ("weight_ptr", "bias_ptr", "scale_ptr", "shift_ptr")
    return {p: "*fp32" if p in singles or p in vectors else f"*{element}" for p in pointers}


def _variant(
    kernel: Any, element: str, pixels: int, channels: int, adaptive: bool = False, last: bool = True, **constants: Any
) -> Variant:
    """A norm of 32 groups as networks launch it, with weights in float32."""
    names = kernel.arg_names
    pointers = tuple(name for name in names if name.endswith("_ptr"))
    absent = () if adaptive else tuple(p for p in pointers if p in ("scale_ptr", "shift_ptr"))
    types = _signature(element, pointers, ("stats_ptr", "partial_ptr", "means_ptr", "sums_ptr"))
    signature = {p: t for p, t in types.items() if p not in absent}
    block_p, block_c = tile(pixels, channels, last)
    values: dict[str, Any] = {"space": pixels, "channels": channels, "groups": 32, "pixels": block_p}
    values |= {"chunks": triton.cdiv(pixels, block_p), "scale_rows": 64 if adaptive else 1}
    values |= {"shift_rows": values["scale_rows"]}
    sizes = [name for name in names if name in values]
    fixed = {name: 1 for name in sizes if values[name] == 1} | dict.fromkeys(absent)
    signature |= {name: "i32" for name in sizes if values[name] != 1} | ({"eps": "fp32"} if "eps" in names else {})
    flags = {"LAST": last, "ADAPTIVE": adaptive, "SILU": True, "BLOCK_P": block_p, "BLOCK_C": block_c, **constants}
    warps = flags.pop("warps", 4)
    aligned = (*(p for p in signature if p in pointers), *(n for n in sizes if values[n] % 16 == 0 and values[n] != 1))
    known = {name: value for name, value in flags.items() if name in names}
    wide = element != "fp32" or last
    return Variant(kernel, signature, {**known, **fixed}, aligned, num_warps=warps, wide_loads=wide)


def variants() -> dict[str, Variant]:
    """CIFAR-10 (256 channels) in one pass at 8x8 to 32x32, ImageNet-64 in two, and the backward."""
    found = {}
    for pixels in (64, 256, 1024):
        blocks = one_pass(pixels, 256, 32, 2, True)
        assert blocks is not None
        once = {"BLOCK_P": blocks[0], "BLOCK_G": blocks[1], "SIZE": 8, "warps": _warps(blocks[0] * blocks[1] * 8)}
        found[f"fwd_once_fp16_c256_hw{pixels}"] = _variant(
            passes._group_norm_silu_fwd_once, "fp16", pixels, 256, **once
        )
    for element, channels in (("fp16", 192), ("bf16", 576), ("fp16", 1536), ("fp32", 256)):
        name = f"{element}_c{channels}_hw4096"
        found[f"moments_{name}"] = _variant(passes._group_norm_silu_moments, element, 4096, channels)
        found[f"fwd_{name}"] = _variant(passes._group_norm_silu_fwd, element, 4096, channels, adaptive=True)
    for element in ("fp16", "bf16", "fp32"):
        name = f"{element}_c256_hw1024"
        found[f"bwd_sums_{name}"] = _variant(passes._group_norm_silu_bwd_sums, element, 1024, 256)
        found[f"bwd_{name}"] = _variant(passes._group_norm_silu_bwd, element, 1024, 256)
    found["bwd_adaptive_fp16_c576_hw1024"] = _variant(passes._group_norm_silu_bwd, "fp16", 1024, 576, adaptive=True)
    found["fwd_fp16_contiguous_hw1024"] = _variant(passes._group_norm_silu_fwd, "fp16", 1024, 256, last=False)
    return found
