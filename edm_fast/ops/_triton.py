"""Whether Triton kernels can take a call: what the `reason` and `slower` functions of all ops ask first."""

from __future__ import annotations

import functools
from typing import Any

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@functools.cache
def _kernels() -> Any:
    """edm_fast.kernels._launch, or one phrase saying why it cannot be had."""
    try:
        from edm_fast.kernels import _launch  # late: a missing triton is a reason, not a crash
    except (ImportError, AttributeError) as error:
        return f"triton does not load ({error})"
    return _launch


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def reason(*tensors: torch.Tensor | None) -> str | None:
    """None if the kernels can take these tensors, as far as device and dtype go; the first one's are decisive."""
    found = [t for t in tensors if t is not None]
    device = found[0].device
    if any([t.device != device for t in found]):
        return "the tensors are on different devices"
    if any([t.dtype not in DTYPES for t in found]):
        return f"it takes float16, bfloat16 and float32, not {next(t.dtype for t in found if t.dtype not in DTYPES)}"
    kernels = _kernels()
    if isinstance(kernels, str):
        return kernels
    if device.type == "cpu" and kernels.INTERPRETED:
        return None
    if device.type != "cuda":
        return "it needs CUDA tensors"
    if torch.version.hip is None and _capability(device) < kernels.MIN_CAPABILITY:
        return "it needs a GPU of compute capability 8.0 or later"
    return None


def slower(x: torch.Tensor, *args: Any, **kwargs: Any) -> str | None:
    return None if x.is_cuda else "Triton's interpreter is for tests"
