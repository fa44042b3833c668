"""Geometric augmentation: 3x3 matrices G from output to input pixels about the image centre, and resampling by them.

Resampling works at twice the resolution behind an orthogonal low-pass filter, so that neither the warp nor the return
to the original grid aliases (Karras et al. 2020, "Training generative adversarial networks with limited data", App. B).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

# Symlet-6 decomposition low-pass filter, sum sqrt(2): one at each change of grid, so that the pair has gain 2 per axis
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
Q = len(SYM6) // 4  # pixels that the filter reaches beyond the image


def stack_matrix(*rows: list[float | Tensor], like: Tensor) -> Tensor:
    """Rows of numbers and tensors (N) -> matrices (N, R, C) on the device of `like` (N)."""
    elements = [value if isinstance(value, Tensor) else torch.full_like(like, value) for row in rows for value in row]
    return torch.stack(elements, dim=-1).reshape(*like.shape, len(rows), len(rows[0]))


def translation(tx: Tensor, ty: Tensor) -> Tensor:
    return stack_matrix([1, 0, tx], [0, 1, ty], [0, 0, 1], like=tx)


def scaling(sx: Tensor, sy: Tensor) -> Tensor:
    return stack_matrix([sx, 0, 0], [0, sy, 0], [0, 0, 1], like=sx)


def rotation(angle: Tensor) -> Tensor:
    cos, sin = torch.cos(angle), torch.sin(angle)
    return stack_matrix([cos, -sin, 0], [sin, cos, 0], [0, 0, 1], like=angle)


def _constant(rows: list[list[float]], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _translation(tx: float, ty: float, like: Tensor) -> Tensor:
    return _constant([[1, 0, tx], [0, 1, ty], [0, 0, 1]], like)


def _scaling(sx: float, sy: float, like: Tensor) -> Tensor:
    return _constant([[sx, 0, 0], [0, sy, 0], [0, 0, 1]], like)


@functools.lru_cache(maxsize=8)
def _filter(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(SYM6, dtype=torch.float32).to(device=device, dtype=dtype)


def _upsample(x: Tensor, dim: int) -> Tensor:
    """Zeros between samples, then the reversed filter: (N, C, H, W) -> twice as long in `dim` (2 or 3), no gain."""
    # a transposed convolution would be one call, but it adds the taps in another order than the published code
    x = torch.stack([x, torch.zeros_like(x)], dim=dim + 1).flatten(dim, dim + 1).narrow(dim, 0, 2 * x.shape[dim] - 1)
    return _filtered(x, _filter(x.device, x.dtype).flip(0), dim, stride=1, padding=6)


def _downsample(x: Tensor, dim: int) -> Tensor:
    """The filter, then every second sample: (N, C, H, W) -> half as long in `dim` (2 or 3), less one."""
    return _filtered(x, _filter(x.device, x.dtype), dim, stride=2, padding=5)


def _filtered(x: Tensor, h: Tensor, dim: int, stride: int, padding: int) -> Tensor:
    """Each channel of x (N, C, H, W) cross-correlated with h (12,) along `dim` (2 or 3)."""
    channels, across = x.shape[1], dim == 3
    weight = h.reshape(1, 1, *((1, -1) if across else (-1, 1))).expand(channels, -1, -1, -1)
    strides, paddings = ((1, stride), (0, padding)) if across else ((stride, 1), (padding, 0))
    return F.conv2d(x, weight, stride=strides, padding=paddings, groups=channels)


def margins(G: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Padding (left, top, right, bottom) that holds every corner of every warped image and the reach of the filter."""
    cx, cy = (width - 1) / 2, (height - 1) / 2
    corners = _constant([[-cx, -cy, 1], [cx, -cy, 1], [cx, cy, 1], [-cx, cy, 1]], G)
    reach = (G @ corners.T)[:, :2].permute(1, 0, 2).flatten(1)  # (2, 4 N): x and y of all corners
    reach = torch.cat([-reach, reach]).max(dim=1).values  # left, top, right, bottom
    reach = reach + _constant([2 * Q - cx, 2 * Q - cy] * 2, G)  # type: ignore[list-item, operator]
    limit = _constant([width - 1, height - 1] * 2, G)  # type: ignore[list-item, operator]
    left, top, right, bottom = reach.clamp(min=0).minimum(limit).ceil().to(torch.int32).tolist()
    return left, top, right, bottom


def warp(images: Tensor, G: Tensor) -> Tensor:
    """Resample images (N, C, H, W) once by G (N, 3, 3), with mirrored borders."""
    n, channels, height, width = images.shape
    left, top, right, bottom = margins(G, height, width)
    x = F.pad(images, [left, right, top, bottom], mode="reflect")
    G = _translation((left - right) / 2, (top - bottom) / 2, G) @ G

    x = _upsample(_upsample(x, 3), 2)
    G = _scaling(2, 2, G) @ G @ _scaling(0.5, 0.5, G)
    G = _translation(-0.5, -0.5, G) @ G @ _translation(0.5, 0.5, G)

    height2, width2 = 2 * (height + 2 * Q), 2 * (width + 2 * Q)
    G = _scaling(2 / x.shape[3], 2 / x.shape[2], G) @ G @ _scaling(width2 / 2, height2 / 2, G)
    grid = F.affine_grid(G[:, :2, :], [n, channels, height2, width2], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    x = _downsample(_downsample(x, 3), 2)
    return x[:, :, Q : Q + height, Q : Q + width]


def shift_mirrored(images: Tensor, tx: Tensor, ty: Tensor) -> Tensor:
    """output(y, x) = input(mirror(y + ty), mirror(x - tx)), whole pixels, borders mirrored without repeating the edge.

    images (N, C, H, W); tx, ty (N, 1, 1, 1) integers. The signs differ, as published.
    """
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).reshape(1, 1, height, 1) + ty.to(torch.int64)
    columns = torch.arange(width, device=images.device).reshape(1, 1, 1, width) - tx.to(torch.int64)
    rows, columns = _mirror(rows, height), _mirror(columns, width)
    index = (rows * width + columns).expand(n, channels, height, width).flatten(2)
    return images.flatten(2).gather(2, index).reshape(images.shape)


def _mirror(position: Tensor, size: int) -> Tensor:
    period = max(2 * size - 2, 1)
    position = torch.remainder(position, period)
    return torch.minimum(position, period - position)


def flip_where(images: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mirror along `dim` the images whose mask (N, 1, 1, 1) is set."""
    return torch.where(mask, images.flip(dim), images)


def identity(images: Tensor, size: int) -> Tensor:
    """(N, size, size) identity matrices, float32."""
    return torch.eye(size, device=images.device).expand(images.shape[0], size, size)
