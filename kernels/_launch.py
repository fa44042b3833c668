"""What every launcher shares: the device context, and the specialisations that are compiled ahead of time in tests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import triton

# kernels defined in this process run in Triton's interpreter, on CPU tensors too (TRITON_INTERPRET=1)
INTERPRETED = bool(triton.knobs.runtime.interpret)
MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 and TF32 matrix products
CHIPS = ("sm_80", "sm_90a")  # what kernels are compiled for in the tests: A100, H100 and H200
EVERY_CHIP = (*CHIPS, "sm_89", "sm_100a", "sm_120a")  # RTX 40, B200, RTX 50


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
