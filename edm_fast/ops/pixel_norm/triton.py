"""pixel_norm in Triton: half precision and float32. Results lie channels last.

Everything is float32 inside, so that gain may have a dtype of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.pixel_norm import _kernel
from edm_fast.ops.pixel_norm.reference import PixelNormArgs, like

MAX_CHANNELS = 16384  # of a group: a program has all of them in registers


def _how(args: PixelNormArgs) -> dict[str, Any]:
    names = ("norm", "silu", "groups", "interleaved", "eps")
    return {**_kernel.tensors(args), **{name: getattr(args, name) for name in names}}


def _forward(args: PixelNormArgs) -> torch.Tensor:
    from edm_fast.kernels import pixel_norm as kernels  # late: a missing triton is a reason, not a crash

    return kernels.forward(**_how(args)) if args.x.numel() else like(args)


def _backward(dy: torch.Tensor, args: PixelNormArgs) -> _kernel.Pair:
    from edm_fast.kernels import pixel_norm as kernels

    if args.x.numel() == 0:
        dx, dgain = _kernel.fresh_gradients(args, torch.float32)
        return dx, dgain.zero_()
    return kernels.backward(dy.contiguous(memory_format=_kernel.LAST), **_how(args))


def reason(args: PixelNormArgs) -> str | None:
    if (found := _triton.reason(args.x, args.gain) or _kernel.reason(args)) is not None:
        return found
    width = args.x.shape[1] // args.groups
    return f"a group has {width} channels, more than {MAX_CHANNELS}" if args.norm and width > MAX_CHANNELS else None


def slower(args: PixelNormArgs) -> str | None:
    if not args.norm and args.gain is None:
        return "torch's own SiLU reads and writes as much"
    return _triton.slower(args.x) or _kernel.slower(args)


forward = _kernel.on_kernel("triton", _triton.DEVICES, _forward, _backward, torch.float32)
triton = Implementation("triton", "cuda", forward, reason, slower, differentiable=True)
