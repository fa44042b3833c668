"""What comes before the products of a convolution: a norm or a factor, and SiLU, with one factor and one summand for
each image and channel, applied to x as it is read."""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from edm_fast.kernels._sigmoid import _sigmoid


@dataclasses.dataclass(frozen=True)
class Prologue:
    """The norm, adaptive scale and shift, and SiLU of group_norm_silu, of given statistics, applied to x as it is read.

    mean, rstd: (N, groups) float32; weight, bias: (C,); scale, shift: (1 or N, C).
    """

    mean: torch.Tensor
    rstd: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    silu: bool = True


@dataclasses.dataclass(frozen=True)
class Factor:
    """gain (1 or N, C), if there is one, and SiLU, applied to x as it is read."""

    gain: torch.Tensor | None
    silu: bool = True


def affine_of(prologue: Prologue | Factor, n: int, c: int, device: torch.device) -> torch.Tensor:
    """(2, N, C) float32: the norm, or the factor, as x a + b."""
    p = prologue
    if isinstance(p, Factor):
        affine = torch.zeros((2, n, c), dtype=torch.float32, device=device)
        affine[0] = 1.0 if p.gain is None else p.gain
        return affine
    affine = torch.empty((2, n, c), dtype=torch.float32, device=device)
    block = min(512, triton.next_power_of_2(c))
    scale, shift, pitch = p.scale, p.shift, 0
    if scale is not None and shift is not None:
        if scale.stride() != shift.stride() or scale.stride(1) != 1:
            scale, shift = scale.contiguous(), shift.contiguous()
        pitch = 0 if scale.shape[0] == 1 else scale.stride(0)
    group = c // p.mean.shape[1]
    tensors = (affine, p.mean.contiguous(), p.rstd.contiguous(), p.weight.contiguous(), p.bias.contiguous())
    _conv2d_affine[n, triton.cdiv(c, block)](
        *tensors, scale, shift, n, c, group, pitch, BLOCK_C=block, ADAPTIVE=scale is not None
    )
    return affine


@triton.jit
def _factors(affine_ptr, image, c, channels, images, ONE_IMAGE: tl.constexpr):
    """a and b of each image and channel."""
    if ONE_IMAGE:  # all rows are of one
        at = affine_ptr + tl.min(image).to(tl.int64) * channels + c[None, :]
    else:
        at = affine_ptr + image.to(tl.int64)[:, None] * channels + c[None, :]
    return tl.load(at), tl.load(at + tl.cast(images, tl.int64) * channels)


@triton.jit
def _activated(x, a, b, inside, SILU: tl.constexpr):
    """silu(x a + b) in float32, and still zero outside of the image."""
    value = x.to(tl.float32) * a + b
    if SILU:
        value *= _sigmoid(value)
    return tl.where(inside, value, 0.0)


@triton.jit
def _conv2d_affine(
    affine_ptr,  # (2, N, C) float32
    mean_ptr,  # (N, groups) float32
    rstd_ptr,
    weight_ptr,  # (C,)
    bias_ptr,
    scale_ptr,  # (N, C)
    shift_ptr,
    images,
    channels,
    group,  # channels each
    pitch,  # from image to image in scale and shift
    BLOCK_C: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """The norm as x a + b: a = weight rstd (1 + scale), b = (bias - mean weight rstd) (1 + scale) + shift."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    at = image * (channels // group) + c // group
    rstd = tl.load(rstd_ptr + at, mask=mask, other=0.0)
    a = tl.load(weight_ptr + c, mask=mask, other=0.0).to(tl.float32) * rstd
    b = tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32) - tl.load(mean_ptr + at, mask=mask, other=0.0) * a
    to = image * channels + c
    if ADAPTIVE:
        own = image * pitch + c
        factor = 1 + tl.load(scale_ptr + own, mask=mask, other=0.0).to(tl.float32)
        a *= factor
        b = b * factor + tl.load(shift_ptr + own, mask=mask, other=0.0).to(tl.float32)
    tl.store(affine_ptr + to, a, mask=mask)
    tl.store(affine_ptr + tl.cast(images, tl.int64) * channels + to, b, mask=mask)


def images_last(x: torch.Tensor) -> torch.Tensor:
    """x (N, C, H, W) with the channels of a pixel side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)
