"""Whether Triton kernels can take a call: what the `reason` and `slower` functions of all ops ask first."""

from __future__ import annotations

import os
from typing import Any

import torch

from edm_fast.errors import BROKEN, one_line

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
DTYPES64 = (*DTYPES, torch.float64)  # of ops without matrix products


# read once: no call of an op should import Triton only to hear that it is not wanted
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")

DEVICES = "cuda cpu" if INTERPRETED else "cuda"  # whose tensors kernels run on

_failure = ""
_old: dict[torch.device, bool] = {}


def _kernels() -> Any:
    """edm_fast.kernels._launch, or one phrase saying why it cannot be had. Not in functools.cache: torch.compile would
    warn of it."""
    global _failure
    if _failure:
        return _failure
    try:
        from edm_fast.kernels import _launch  # late: a missing triton is a reason, not a crash
    except BROKEN as error:
        _failure = f"triton does not load ({type(error).__name__}: {one_line(error)})"
        return _failure
    return _launch


def _is_old(device: torch.device, least: tuple[int, int]) -> bool:
    if device not in _old:
        _old[device] = torch.version.hip is None and torch.cuda.get_device_capability(device) < least
    return _old[device]


def reason(*tensors: torch.Tensor | None, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """None if the kernels can take these tensors, as far as device and dtype go; the first one's are decisive."""
    first = tensors[0]
    if not INTERPRETED and first is not None and not first.is_cuda:
        return "it needs CUDA tensors"  # at once: every call on a CPU asks
    found = [t for t in tensors if t is not None]
    device = found[0].device
    if any([t.device != device for t in found]):
        return "the tensors are on different devices"
    if any([t.dtype not in dtypes for t in found]):
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        other = next(t.dtype for t in found if t.dtype not in dtypes)
        return f"it takes {', '.join(names[:-1])} and {names[-1]}, not {other}"
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return "it needs CUDA tensors"
    kernels = _kernels()
    if isinstance(kernels, str):
        return kernels
    if device.type == "cpu":
        return None if kernels.INTERPRETED else "it needs CUDA tensors"
    if _is_old(device, kernels.MIN_CAPABILITY):
        return "it needs a GPU of compute capability 8.0 or later"
    return None


def slower(x: torch.Tensor) -> str | None:
    return None if x.is_cuda else "Triton's interpreter is for tests"
