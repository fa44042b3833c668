"""pixel_norm on a kernel: what the backends have in common. The backward op returns dx and dgain; without gain this
has no rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast.ops._fused import differentiable, torch_op
from edm_fast.ops.pixel_norm.reference import PixelNormArgs, like, reference

LAST = torch.channels_last
Pair = tuple[torch.Tensor, torch.Tensor]


def tensors(args: PixelNormArgs) -> dict[str, Any]:
    """x and gain as kernels read them."""
    gain = args.gain
    return {"x": args.x.contiguous(memory_format=LAST), "gain": None if gain is None else gain.contiguous()}


def reason(args: PixelNormArgs) -> str | None:
    if args.interleaved not in (1, 3):
        return f"it takes every channel or every third one, not every {args.interleaved}th"
    return None


def slower(args: PixelNormArgs) -> str | None:
    return None if args.x.is_contiguous(memory_format=LAST) else "its image does not lie channels last"


def fresh_gradients(args: PixelNormArgs, dtype: torch.dtype | None = None) -> Pair:
    """Memory for dx and dgain, this by default in the dtype of x."""
    rows = 0 if args.gain is None else args.gain.shape[0]
    return like(args), args.x.new_empty((rows, args.x.shape[1]), dtype=dtype)


def on_kernel(
    name: str,
    device: str,
    forward: Callable[[PixelNormArgs], torch.Tensor],
    backward: Callable[[torch.Tensor, PixelNormArgs], Pair],
    dtype: torch.dtype | None = None,
) -> Callable[[PixelNormArgs], torch.Tensor]:
    """The op on a kernel, as torch.ops.edm_fast.pixel_norm_NAME; dtype: of dgain."""
    name = f"pixel_norm_{name}"
    forward_op = torch_op(name, device, PixelNormArgs, forward, like)
    backward_op = torch_op(
        f"{name}_backward",
        device,
        PixelNormArgs,
        backward,
        lambda dy, args: fresh_gradients(args, dtype),
        before=["dy"],
        returns="(Tensor dx, Tensor dgain)",
    )

    def gradients(args: PixelNormArgs, needs: Any, dy: torch.Tensor) -> dict[str, torch.Tensor]:
        dx, dgain = backward_op(dy, *args)
        return {"x": dx} if args.gain is None else {"x": dx, "gain": dgain}

    both = ["x", "gain"]
    return differentiable(PixelNormArgs, reference, forward_op, gradients, saved=dict.fromkeys(both, both))
