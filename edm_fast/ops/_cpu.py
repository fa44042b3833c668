"""Why the native code for CPUs cannot take a call in float32: what the `reason` functions of such ops share."""

from __future__ import annotations

import torch


def float32_reason(*tensors: torch.Tensor | None) -> str | None:
    """None if the tensors that are given are of float32 on the CPU, and no autocast wants another dtype."""
    found = [t for t in tensors if t is not None]
    if any([t.device.type != "cpu" for t in found]):
        return "it needs CPU tensors"
    if any([t.dtype != torch.float32 for t in found]):
        return f"it takes float32 alone, not {next(t.dtype for t in found if t.dtype != torch.float32)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast wants another dtype"
    return None
