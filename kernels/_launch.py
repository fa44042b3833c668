"""What every launcher shares: the device context, and the specialisations that are compiled ahead of time in tests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

# kernels defined in this process run in Triton's interpreter, on CPU tensors too (TRITON_INTERPRET=1)
INTERPRETED = bool(triton.knobs.runtime.interpret)
MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 and TF32 matrix products
CHIPS = ("sm_80", "sm_90a")  # what kernels are compiled for in the tests: A100, H100 and H200
EARLY_CAPABILITY = (9, 0)  # launches that begin while the kernel before ends
_may_begin, _wait = (getattr(cuda, f"gdc_{name}", None) for name in ("launch_dependents", "wait"))  # not in old Triton
EVERY_CHIP = (*CHIPS, "sm_89", "sm_100a", "sm_120a")  # RTX 40, B200, RTX 50


@triton.jit
def in_turn(EARLY: tl.constexpr):
    """First of all in a kernel that is launched early, while the one before it ends: the next one may do likewise, and
    nothing is read or written before all that came before is done. Of compute capability 9.0 or more."""
    if EARLY:
        _may_begin()
        _wait()


def early_reason(device: torch.device) -> str | None:
    """Why kernels are not launched early there, or None."""
    if _wait is None or INTERPRETED:
        return "this Triton, or its interpreter, knows no early launches"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < EARLY_CAPABILITY:
        return "it needs a GPU of compute capability 9.0"
    return None


def started(early: bool, after_ours: bool = True) -> dict[str, Any]:
    """Options of a launch of a kernel that has `in_turn`; the one before it may be any, or one of ours."""
    return {"EARLY": early, **({"launch_pdl": True} if early and after_ours else {})}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel as the networks launch it: what triton.compile needs to know, and what must come.

    The tests compile all of them for their chips without a GPU, and compare registers, spills, shared memory and
    instructions with a table.

    `signature` gives each run-time argument's type ("*fp16", "i64", "fp32"), `constants` the values of the constexprs
    (of arguments that are None, too); `aligned` the arguments that are multiples of 16 (pointers: addresses).
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    matrix_products: bool = False  # HMMA or HGMMA instructions must be there
    wide_loads: bool = True  # 16-byte loads (LDG.128, LDGSTS.128 or TMA) must be there
    float8: bool = False  # all matrix instructions must be QGMMA; chips before sm_89 have none
    fused_multiply_add: bool = (
        True  # False: products and sums round on their own (launched with enable_fp_fusion=False)
    )
    chips: tuple[str, ...] = CHIPS


def on_device(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device and its current stream: make that of x current."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
