"""Input checks the ops share. Each raises UserError with one line."""

from __future__ import annotations

import torch

from edm_fast.errors import UserError


def floating(op: str, name: str, tensor: torch.Tensor, ndim: int) -> None:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise UserError(f"{op}: {name} must be a floating-point tensor")
    if tensor.ndim != ndim:
        raise UserError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {ndim} dimensions")


def shape(op: str, name: str, tensor: torch.Tensor | None, expected: tuple[int, ...]) -> None:
    """None passes: the argument was optional."""
    if tensor is not None and tuple(tensor.shape) != tuple(expected):
        raise UserError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {tuple(expected)}")
