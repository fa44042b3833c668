"""Whether Triton kernels can take a call: what the `reason` and `slower` functions of all ops ask first."""

from __future__ import annotations

import functools
from typing import Any

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
DTYPES64 = (*DTYPES, torch.float64)  # of ops without matrix products


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


def reason(*tensors: torch.Tensor | None, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """None if the kernels can take these tensors, as far as device and dtype go; the first one's are decisive."""
    found = [t for t in tensors if t is not None]
    device = found[0].device
    if any([t.device != device for t in found]):
        return "the tensors are on different devices"
    if any([t.dtype not in dtypes for t in found]):
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        other = next(t.dtype for t in found if t.dtype not in dtypes)
        return f"it takes {', '.join(names[:-1])} and {names[-1]}, not {other}"
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
