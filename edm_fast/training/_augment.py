"""Augmentation of training images, with labels that tell the network what was done (Karras et al. 2022, Appendix F.2).

Each transformation has a multiplier (0 = off: no draws, no labels); it happens with probability multiplier * p. The
random numbers come from the global generator of the device in a fixed order: per transformation its parameters,
then the gate `rand < probability` that resets them to 0. Zero labels mean "not augmented". The order of operations is
that of the published code, to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.training import _color as color
from edm_fast.training import _warp as geo

# the published training: plain coin flips, and the rest with the probability p of the pipe; labels of an image
AUGMENT = {"xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
AUGMENT_LABELS = 9


@dataclass
class AugmentPipe:
    """`pipe(images)`: images (N, C, H, W) float32 -> the same augmented, and labels (N, L) float32."""

    p: float = 1
    # pixel steps
    xflip: float = 0
    yflip: float = 0
    rotate_int: float = 0
    translate_int: float = 0
    translate_int_max: float = 0.125
    # geometric steps
    scale: float = 0
    rotate_frac: float = 0
    aniso: float = 0
    translate_frac: float = 0
    scale_std: float = 0.2
    rotate_frac_max: float = 1
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125
    # colour steps
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1
    saturation_std: float = 1

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"p {self.p} of the augmentation; expected a probability, from 0 to 1")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        labels = [images.new_zeros([images.shape[0], 0], dtype=torch.float32)]
        images = self._pixel_steps(images, labels)
        images = self._geometric_steps(images, labels)
        images = self._color_steps(images, labels)
        return images, torch.cat([label.to(torch.float32).reshape(images.shape[0], -1) for label in labels], dim=1)

    def _gate(self, value: Tensor, shape: list[int], multiplier: float) -> Tensor:
        """`value` with probability multiplier * p, otherwise 0; one draw for each element of `shape`."""
        keep = torch.rand(shape, device=value.device) < multiplier * self.p
        return torch.where(keep, value, torch.zeros_like(value))

    def _pixel_steps(self, images: Tensor, labels: list[Tensor]) -> Tensor:
        """Mirrors, quarter turns and whole-pixel shifts, done at once."""
        n, _, height, width = images.shape
        device, single = images.device, [n, 1, 1, 1]
        if self.xflip > 0:
            w = self._gate(torch.randint(2, single, device=device), single, self.xflip)
            images = geo.flip_where(images, w == 1, 3)
            labels.append(w)
        if self.yflip > 0:
            w = self._gate(torch.randint(2, single, device=device), single, self.yflip)
            images = geo.flip_where(images, w == 1, 2)
            labels.append(w)
        if self.rotate_int > 0:
            w = self._gate(torch.randint(4, single, device=device), single, self.rotate_int)
            images = geo.flip_where(images, (w == 1) | (w == 2), 3)
            images = geo.flip_where(images, (w == 2) | (w == 3), 2)
            images = torch.where((w == 1) | (w == 3), images.transpose(2, 3), images)
            labels += [(w == 1) | (w == 2), (w == 2) | (w == 3)]
        if self.translate_int > 0:
            w = self._gate(torch.rand([2, *single], device=device) * 2 - 1, [1, *single], self.translate_int)
            tx = (w[0] * width * self.translate_int_max).round()
            ty = (w[1] * height * self.translate_int_max).round()
            images = geo.shift_mirrored(images, tx, ty)
            labels += [tx / (width * self.translate_int_max), ty / (height * self.translate_int_max)]
        return images

    def _geometric_steps(self, images: Tensor, labels: list[Tensor]) -> Tensor:
        """Scaling, rotation, anisotropic scaling and translation, gathered in one matrix, resampled once."""
        if not (self.scale > 0 or self.rotate_frac > 0 or self.aniso > 0 or self.translate_frac > 0):
            return images
        n, _, height, width = images.shape
        device = images.device
        G = geo.identity(images, 3)
        if self.scale > 0:
            w = self._gate(torch.randn([n], device=device), [n], self.scale)
            s = torch.exp2(w * self.scale_std)
            G = G @ geo.scaling(1 / s, 1 / s)
            labels.append(w)
        if self.rotate_frac > 0:
            w = (torch.rand([n], device=device) * 2 - 1) * math.pi * self.rotate_frac_max
            w = self._gate(w, [n], self.rotate_frac)
            G = G @ geo.rotation(w)
            labels.append(torch.stack([w.cos() - 1, w.sin()], dim=1))
        if self.aniso > 0:
            w = torch.randn([n], device=device)
            r = (torch.rand([n], device=device) * 2 - 1) * math.pi
            w = self._gate(w, [n], self.aniso)
            r = torch.where(torch.rand([n], device=device) < self.aniso_rotate_prob, r, torch.zeros_like(r))
            s = torch.exp2(w * self.aniso_std)
            # 1 / (1 / s), not s: the rounding of the published code
            G = G @ geo.rotation(-r) @ geo.scaling(1 / s, 1 / (1 / s)) @ geo.rotation(r)
            labels.append(torch.stack([w * r.cos(), w * r.sin()], dim=1))
        if self.translate_frac > 0:
            w = self._gate(torch.randn([2, n], device=device), [1, n], self.translate_frac)
            tx, ty = w[0] * width * self.translate_frac_std, w[1] * height * self.translate_frac_std
            G = G @ geo.translation(-tx, -ty)
            labels.append(w.T)
        return geo.warp(images, G)

    def _color_steps(self, images: Tensor, labels: list[Tensor]) -> Tensor:
        """Brightness, contrast, luma flip, hue and saturation, gathered in one matrix."""
        if not any([self.brightness > 0, self.contrast > 0, self.lumaflip > 0, self.hue > 0, self.saturation > 0]):
            return images
        n, device = images.shape[0], images.device
        M = geo.identity(images, 4)
        if self.brightness > 0:
            w = self._gate(torch.randn([n], device=device), [n], self.brightness)
            M = color.brightness(w * self.brightness_std) @ M
            labels.append(w)
        if self.contrast > 0:
            w = self._gate(torch.randn([n], device=device), [n], self.contrast)
            M = color.contrast(torch.exp2(w * self.contrast_std)) @ M
            labels.append(w)
        if self.lumaflip > 0:
            w = self._gate(torch.randint(2, [n, 1, 1], device=device), [n, 1, 1], self.lumaflip)
            M = color.lumaflip(w) @ M
            labels.append(w)
        if self.hue > 0:
            w = (torch.rand([n], device=device) * 2 - 1) * math.pi * self.hue_max
            w = self._gate(w, [n], self.hue)
            M = color.hue(w) @ M
            labels.append(torch.stack([w.cos() - 1, w.sin()], dim=1))
        if self.saturation > 0:
            w = self._gate(torch.randn([n, 1, 1], device=device), [n, 1, 1], self.saturation)
            M = color.saturation(torch.exp2(w * self.saturation_std)) @ M
            labels.append(w)
        return color.recolor(images, M)
