"""conv2d with products of float8 (e4m3) and float32 sums: an experiment that no precision of accelerate() uses.

    y = (s_x s_w (w8 * x8) + rows + residual) scale        x8 = x / s_x, w8 = w / s_w, rounded to 4 bits of precision

s_x: one for all of x, s_w: one for each output, by which the largest magnitude becomes 448, that of the format.
The kernel is `_conv2d_fwd`; the matrix units' own sums, of 14 bits, are taken out of them after each block along K.
A layer errs by 4% (rms; bfloat16: 0.24%), the bundled digits model by 1 to 3% of F, 12 times as much as in bfloat16.
"""

from __future__ import annotations

import torch

from edm_fast.kernels import conv2d
from edm_fast.kernels._conv2d_blocks import Blocks

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
MIN_CAPABILITY = (8, 9)
CHANNELS = 32  # of one matrix instruction


def reason(device: torch.device, channels: int) -> str | None:
    """None, or why float8 products of so many channels are not possible on a device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "float8 products need a GPU of compute capability 8.9 or later"
    if channels % CHANNELS:
        return f"float8 products need a multiple of {CHANNELS} channels, not {channels}"
    return None


def scaled(t: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """t in float8 and what it is to be multiplied with, one float32 number over `dims`."""
    factor = t.abs().amax(dims, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (t / factor).to(DTYPE), factor


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (O, C, k, k) -> (O, k, k, C) float8, and its factors (O,)."""
    packed, factors = scaled(weight, (1, 2, 3))
    return conv2d.pack(packed), factors.flatten()


def forward(
    x: torch.Tensor,
    packed: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int = 0,
    plan: Blocks | None = None,
) -> torch.Tensor:
    """Convolve x (N, C, H, W), of the dtype of y, with what `pack` gave. ValueError where `reason` has one."""
    if (why := reason(x.device, x.shape[1])) is not None:
        raise ValueError(why)
    x8, factor = scaled(x, (0, 1, 2, 3))
    weight, factors = packed
    factors = factors * factor.flatten()
    return conv2d.forward(x8, weight, rows, residual, scale, padding, plan=plan, float8=conv2d.Float8(factors, x.dtype))
