"""Gradients of the tail in Triton, for both implementations on GPUs: one pass over dy gives dy scale and its sums."""

from __future__ import annotations

from typing import NamedTuple

import torch

from edm_fast.backend import transformed
from edm_fast.ops import _triton
from edm_fast.ops._fused import torch_op
from edm_fast.ops.conv2d import _kernel
from edm_fast.ops.conv2d.reference import Conv2dArgs

Pair = tuple[torch.Tensor, torch.Tensor]


class TailArgs(NamedTuple):
    dy: torch.Tensor
    scale: float


def _fresh(args: TailArgs) -> Pair:
    """Nothing in place of dy scale where that is dy: a torch op returns none of its arguments."""
    scaled = args.dy.new_empty(0) if args.scale == 1.0 else torch.empty_like(args.dy)
    return scaled, args.dy.new_empty(args.dy.shape[:2], dtype=torch.float32)


def _backward(args: TailArgs) -> Pair:
    from edm_fast.kernels import conv2d as kernels  # late: a missing triton is a reason, not a crash

    scaled, drows = kernels.finish_gradients(args.dy, args.scale)
    return args.dy.new_empty(0) if scaled is None else scaled, drows


_op = torch_op("conv2d_tail_backward", _triton.DEVICES, TailArgs, _backward, _fresh, returns="(Tensor, Tensor)")


def tail_backward(dy: torch.Tensor, args: Conv2dArgs) -> Pair:
    if transformed(dy):  # torch takes batches of gradients apart for its own ops
        return _kernel.tail_backward(dy, args)
    scaled, drows = _op(dy, float(args.scale))
    return dy if args.scale == 1.0 else scaled, drows
