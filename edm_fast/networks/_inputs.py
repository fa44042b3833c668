"""What a network may be given. Shapes, types and devices alone are looked at: no check waits for a device."""

from __future__ import annotations

from typing import Any

import torch

from edm_fast.errors import UserError


def described(value: Any) -> str:
    """ "torch.int64 (10,) on cpu" or, of what is no tensor, "of type list"."""
    if not isinstance(value, torch.Tensor):
        return f"of type {type(value).__name__}"
    return f"{value.dtype} {tuple(value.shape)} on {value.device}"


def check_images(x: Any, channels: int) -> None:
    """x: (N, channels, H, W), real."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or x.shape[1] != channels or x.is_complex():
        raise UserError(f"x is {described(x)}; expected a tensor of real numbers (N, {channels}, H, W)")


def check_size(x: torch.Tensor, levels: int) -> None:
    """x: (N, C, H, W), halved by every level but the first."""
    multiple = 2 ** (levels - 1)
    if x.shape[2] % multiple or x.shape[3] % multiple:
        raise UserError(
            f"images of {x.shape[2]}x{x.shape[3]} for a network of {levels} levels; expected multiples of {multiple}"
        )


def checked_levels(sigma: Any, n: int, device: torch.device) -> torch.Tensor:
    """One noise level, or one for each of n images, in any shape, as float32 on the device."""
    if isinstance(sigma, (int, float)):  # as_tensor would make torch.compile compile anew for each level
        return sigma * torch.ones(1, device=device)
    found = _tensor_of(sigma, device)
    if found is None or found.is_complex() or found.numel() not in (1, n):
        raise UserError(f"sigma is {described(sigma)} for {n} images; expected one noise level, or one for each image")
    return found.to(torch.float32)


def _tensor_of(value: Any, device: torch.device) -> torch.Tensor | None:
    """A tensor on the device of a tensor, an array or a list; None if it is none of them."""
    if isinstance(value, torch.Tensor):
        return torch.as_tensor(value, device=device)
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError):
        return None


def checked_labels(labels: Any, n: int, label_dim: int, device: torch.device) -> torch.Tensor:
    """Labels of n images, (N or 1, label_dim) float32.

    A floating-point vector (label_dim,) is one row for all images, as published, unless there are label_dim images,
    for which it could be their class numbers as well.
    """
    if isinstance(labels, torch.Tensor) and not labels.is_complex() and labels.device == device:
        rows, width = labels.shape if labels.ndim == 2 else (0, 0)
        if width == label_dim and (rows == n or rows == 1):
            return labels.to(torch.float32)
        if labels.shape == (label_dim,) and labels.is_floating_point() and (n == 1 or n != label_dim):
            return labels.to(torch.float32)[None]
    raise UserError(
        f"class_labels is {described(labels)} for {n} images; expected a row of {label_dim} numbers for each, or one "
        f"for all, on {device}; class numbers become rows by torch.nn.functional.one_hot(numbers, {label_dim})"
    )


def check_augment_labels(labels: Any, n: int, augment_dim: int, device: torch.device) -> None:
    """labels: (N or 1, augment_dim)."""
    if isinstance(labels, torch.Tensor) and labels.ndim == 2 and labels.device == device:
        rows, width = labels.shape
        if width == augment_dim and (rows == n or rows == 1):
            return
    raise UserError(
        f"augment_labels is {described(labels)} for {n} images; expected a row of {augment_dim} numbers for each, or "
        f"one for all, on {device}"
    )
