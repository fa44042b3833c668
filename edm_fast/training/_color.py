"""Colour augmentation: 4x4 matrices M acting on homogeneous RGB, about the luma axis v = (1, 1, 1, 0) / sqrt(3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.training._warp import stack_matrix

LUMA = (*[float(torch.tensor(1 / math.sqrt(3), dtype=torch.float32, device="cpu"))] * 3, 0.0)  # v, rounded to float32


def luma_projector(like: Tensor) -> Tensor:
    """v v^T, (4, 4)."""
    v = torch.tensor(LUMA, dtype=torch.float32, device=like.device)
    return v[:, None] * v


def brightness(b: Tensor) -> Tensor:
    """Add b (N) to every channel."""
    return stack_matrix([1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1], like=b)


def contrast(c: Tensor) -> Tensor:
    """Multiply every channel by c (N)."""
    return stack_matrix([c, 0, 0, 0], [0, c, 0, 0], [0, 0, c, 0], [0, 0, 0, 1], like=c)


def lumaflip(w: Tensor) -> Tensor:
    """Reflect across the plane normal to v where w (N, 1, 1) is 1."""
    return torch.eye(4, device=w.device) - 2 * luma_projector(w) * w


def hue(angle: Tensor) -> Tensor:
    """Rotate about v by angle (N); Rodrigues: cos I + sin [v]x + (1 - cos) v v^T."""
    x, y, z = LUMA[:3]
    cos, sin = torch.cos(angle), torch.sin(angle)
    rest = 1 - cos
    return stack_matrix(
        [x * x * rest + cos, x * y * rest - z * sin, x * z * rest + y * sin, 0],
        [y * x * rest + z * sin, y * y * rest + cos, y * z * rest - x * sin, 0],
        [z * x * rest - y * sin, z * y * rest + x * sin, z * z * rest + cos, 0],
        [0, 0, 0, 1],
        like=angle,
    )


def saturation(factor: Tensor) -> Tensor:
    """Scale the distance from the luma axis by factor (N, 1, 1)."""
    vv = luma_projector(factor)
    return vv + (torch.eye(4, device=factor.device) - vv) * factor


def recolor(images: Tensor, M: Tensor) -> Tensor:
    """Apply M (N, 4, 4) to images (N, 3, H, W); one channel gets the mean of the three rows."""
    n, channels, height, width = images.shape
    x = images.reshape(n, channels, height * width)
    if channels == 3:
        x = M[:, :3, :3] @ x + M[:, :3, 3:]
    elif channels == 1:
        row = M[:, :3, :].mean(dim=1, keepdim=True)  # (N, 1, 4)
        x = x * row[:, :, :3].sum(dim=2, keepdim=True) + row[:, :, 3:]
    else:
        raise UserError(f"colour augmentation of {channels} channels; expected 1 or 3")
    return x.reshape(n, channels, height, width)
