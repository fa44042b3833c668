"""pixel_norm in Triton: n = x / s, s = eps + RMS of a part of a pixel's channels; m = n gain; y = m sigmoid(m).

Images in float16, bfloat16 or float32, channels last; everything between load and store in float32. A program has
BLOCK_P pixels of an image and one group of channels, or a block of them where no norm is taken, so that each image is
read and written once. A part is every INTERLEAVED-th channel of a group. With g = dy silu'(m) gain:

    dx = g / s - x dot / (s^2 size RMS),  dot = sum of g x over the part;  dgain = sum over pixels of dy silu'(m) n

Memory-bound: forward moves 2 images, backward 3. All sums are taken in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edm_fast.kernels._launch import Variant, on_device
from edm_fast.kernels._sigmoid import _sigmoid

TILE = 4096  # elements of a program of four warps: 32 of each thread; wider groups have more warps


@triton.jit
def _tile(space, channels, width, chunks, NORM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a program: its image, places in the group, channels and which are there; offsets and which are there."""
    n = (tl.program_id(0) // chunks).to(tl.int64)
    p = (tl.program_id(0) % chunks) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    j = tl.arange(0, BLOCK_C)
    c = tl.program_id(1) * width + j
    if NORM:
        own = j < width
    else:
        own = c < channels
    return n, j, c, own, (n * space + p) * channels + c[None, :], (p < space) & own[None, :]


@triton.jit
def _of_part(values, j, k: tl.constexpr, INTERLEAVED: tl.constexpr):
    """(BLOCK_P, 1): the sum over the k-th part of a group."""
    return tl.sum(tl.where(j[None, :] % INTERLEAVED == k, values, 0.0), 1)[:, None]


@triton.jit
def _inverse(x, j, eps, size, INTERLEAVED: tl.constexpr):
    """1 / s of each element's part, which has `size` channels."""
    inverse = tl.zeros_like(x)
    for k in tl.static_range(INTERLEAVED):
        s = eps + tl.sqrt_rn(_of_part(x * x, j, k, INTERLEAVED) / size)
        inverse = tl.where(j[None, :] % INTERLEAVED == k, 1.0 / s, inverse)
    return inverse


@triton.jit
def _gain(gain_ptr, n, c, own, channels, gain_rows):
    return tl.load(gain_ptr + (n % gain_rows) * channels + c, mask=own, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _pixel_norm_fwd(
    y_ptr, x_ptr, gain_ptr, eps, space, channels, width, chunks, gain_rows,
    NORM: tl.constexpr, SILU: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, j, c, own, offsets, there = _tile(space, channels, width, chunks, NORM, BLOCK_P, BLOCK_C)
    m = tl.load(x_ptr + offsets, mask=there, other=0.0).to(tl.float32)
    if NORM:
        m *= _inverse(m, j, eps, (width // INTERLEAVED).to(tl.float32), INTERLEAVED)
    if gain_ptr is not None:
        m *= _gain(gain_ptr, n, c, own, channels, gain_rows)
    if SILU:
        m *= _sigmoid(m)
    tl.store(y_ptr + offsets, m.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _pixel_norm_bwd(
    dx_ptr, partial_ptr, dy_ptr, x_ptr, gain_ptr, eps, space, channels, width, chunks, gain_rows,
    NORM: tl.constexpr, SILU: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx, and partial (N chunks, C): dgain of a chunk of pixels."""
    n, j, c, own, offsets, there = _tile(space, channels, width, chunks, NORM, BLOCK_P, BLOCK_C)
    x = tl.load(x_ptr + offsets, mask=there, other=0.0).to(tl.float32)
    g = tl.load(dy_ptr + offsets, mask=there, other=0.0).to(tl.float32)
    u, size = x, (width // INTERLEAVED).to(tl.float32)
    if NORM:
        inverse = _inverse(x, j, eps, size, INTERLEAVED)
        u = x * inverse
    m = u
    if gain_ptr is not None:
        gain = _gain(gain_ptr, n, c, own, channels, gain_rows)
        m = u * gain
    if SILU:
        sigmoid = _sigmoid(m)
        g *= sigmoid * (1.0 + m * (1.0 - sigmoid))
    if gain_ptr is not None:
        to = partial_ptr + tl.program_id(0).to(tl.int64) * channels + c
        tl.store(to, tl.sum(tl.where(there, g * u, 0.0), 0), mask=own)
        g *= gain
    if NORM:
        other = tl.zeros_like(x)
        for k in tl.static_range(INTERLEAVED):
            rms = tl.sqrt_rn(_of_part(x * x, j, k, INTERLEAVED) / size)
            dot = _of_part(g * u, j, k, INTERLEAVED)  # over s: g x may be too large for float32
            found = dot / ((eps + rms) * size * tl.where(rms > 0, rms, 1.0))  # in pixels of zeros both are 0
            other = tl.where(j[None, :] % INTERLEAVED == k, found, other)
        g = g * inverse - x * other
    tl.store(dx_ptr + offsets, g.to(dx_ptr.dtype.element_ty), mask=there)


def tile(space: int, channels: int, groups: int | None) -> tuple[int, dict[str, int]]:
    """Channels of a program, and its BLOCK_P, BLOCK_C and num_warps; groups: None without a norm."""
    if groups is None:  # such as 64 for 192 channels: nothing is left over
        width = block_c = min(256, max(64, channels & -channels), triton.next_power_of_2(channels))
    else:
        width = channels // groups
        block_c = triton.next_power_of_2(width)
    block_p = min(max(TILE // block_c, 1), triton.next_power_of_2(space))
    warps = max(1, min(16, block_p * block_c // 1024))
    return width, {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": warps}


def _launch(
    x: torch.Tensor, gain: torch.Tensor | None, norm: bool, silu: bool, groups: int, interleaved: int
) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """The grid, the sizes, and the constants of a launch."""
    n, c, h, w = x.shape
    width, blocks = tile(h * w, c, groups if norm else None)
    chunks = triton.cdiv(h * w, blocks["BLOCK_P"])
    sizes = (h * w, c, width, chunks, 1 if gain is None else gain.shape[0])
    flags = {"NORM": norm, "SILU": silu, "INTERLEAVED": interleaved, **blocks}
    return (n * chunks, triton.cdiv(c, width)), sizes, flags


def forward(x: torch.Tensor, gain: torch.Tensor | None, eps: float, **how: Any) -> torch.Tensor:
    """y as x (N, C, H, W), channels last; gain (N or 1, C), contiguous; how: norm, silu, groups, interleaved."""
    y = torch.empty_like(x, memory_format=torch.channels_last)
    grid, sizes, flags = _launch(x, gain, **how)
    with on_device(x):
        _pixel_norm_fwd[grid](y, x, gain, eps, *sizes, **flags)
    return y


def backward(
    dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor | None, eps: float, **how: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, and dgain as gain, float32; no rows of it where there is no gain."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    grid, sizes, flags = _launch(x, gain, **how)
    partial = x.new_empty((0 if gain is None else grid[0], x.shape[1]), dtype=torch.float32)
    with on_device(x):
        _pixel_norm_bwd[grid](dx, None if gain is None else partial, dy, x, gain, eps, *sizes, **flags)
    if gain is None:
        return dx, partial
    dgain = partial.unflatten(0, (len(x), -1)).sum(1)
    return dx, dgain.sum(0, keepdim=True) if len(gain) < len(x) else dgain


def _variant(
    kernel: Any, element: str, pixels: int, channels: int, groups: int | None, gain: bool, silu: bool, parts: int = 1
) -> Variant:
    """Of 64 images, with factors for each in the dtype of the images."""
    width, blocks = tile(pixels, channels, groups)
    types = {p: "*fp32" if p == "partial_ptr" else f"*{element}" for p in kernel.arg_names if p.endswith("_ptr")}
    sizes = {"space": pixels, "channels": channels, "width": width, "gain_rows": 64 if gain else 1}
    sizes["chunks"] = triton.cdiv(pixels, blocks["BLOCK_P"])
    constants: dict[str, Any] = {} if gain else dict.fromkeys(p for p in types if p in ("gain_ptr", "partial_ptr"))
    constants |= {name: 1 for name, size in sizes.items() if size == 1}
    signature = {**types, "eps": "fp32", **dict.fromkeys(sizes, "i32")}
    signature = {name: text for name, text in signature.items() if name not in constants}
    aligned = tuple(name for name in signature if name in types or sizes.get(name, 1) % 16 == 0)
    warps = blocks.pop("num_warps")
    constants |= {"NORM": groups is not None, "SILU": silu, "INTERLEAVED": parts, **blocks}
    return Variant(kernel, signature, constants, aligned, num_warps=warps)


def variants() -> dict[str, Variant]:
    """EDM2's calls: the norm of an image, that of q, k and v as plans have them apart and as they lie, SiLU alone, and
    after a factor."""
    calls: dict[str, Any] = {
        "norm_fp16_c192_hw4096": ("fp16", 4096, 192, 1, False, False),
        "norm_bf16_c576_hw256": ("bf16", 256, 576, 1, False, False),
        "norm_fp32_c768_hw64": ("fp32", 64, 768, 1, False, False),
        "norm_fp16_c1792_hw64": ("fp16", 64, 1792, 1, False, False),
        "qkv_fp16_c1728_hw256": ("fp16", 256, 1728, 27, False, False),
        "heads_fp16_c1728_hw256": ("fp16", 256, 1728, 9, False, False, 3),
        "silu_fp16_c384_hw1024": ("fp16", 1024, 384, None, False, True),
        "gain_fp16_c192_hw4096": ("fp16", 4096, 192, None, True, True),
        "gain_bf16_c576_hw256": ("bf16", 256, 576, None, True, True),
        "gain_fp32_c768_hw64": ("fp32", 64, 768, None, True, True),
        "all_fp16_c384_hw1024": ("fp16", 1024, 384, 1, True, True),
        "all_fp32_c384_hw1024": ("fp32", 1024, 384, 1, True, True),
    }
    kernels = {"fwd": _pixel_norm_fwd, "bwd": _pixel_norm_bwd}
    return {
        f"{part}_{name}": _variant(kernel, *call) for part, kernel in kernels.items() for name, call in calls.items()
    }
