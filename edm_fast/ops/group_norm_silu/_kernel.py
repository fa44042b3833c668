"""group_norm_silu on a kernel: what the backends have in common.

The forward op also returns the statistics of each group, which its backward needs. The backward op returns dx and, in
one tensor of C columns, the rows of dweight, dbias, dscale and dshift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from edm_fast import native
from edm_fast.ops._fused import differentiable, torch_op
from edm_fast.ops.group_norm_silu.reference import GroupNormSiluArgs, reference

Pair = tuple[torch.Tensor, torch.Tensor]
Forward = Callable[[GroupNormSiluArgs], Pair]
Backward = Callable[[torch.Tensor, torch.Tensor, GroupNormSiluArgs], Pair]  # of dy and statistics


def channels_are_last(x: torch.Tensor, layout: torch.memory_format) -> bool:
    """Whether channels are next to each other, as in vectors, too."""
    return layout == torch.channels_last or math.prod(x.shape[2:]) == 1


def fresh(x: torch.Tensor, layout: torch.memory_format | None = None) -> torch.Tensor:
    return torch.empty_like(x, memory_format=layout or native.dense_layout(x))


def rows_of(args: GroupNormSiluArgs) -> tuple[int, int]:
    """The numbers of rows of scale and shift."""
    scale, shift = args.scale, args.shift
    return 0 if scale is None else scale.shape[0], 0 if shift is None else shift.shape[0]


def fresh_gradients(args: GroupNormSiluArgs, dtype: torch.dtype | None = None) -> Pair:
    """Memory for dx and dparams, these by default in the dtype of x."""
    x = args.x
    return fresh(x), x.new_empty((2 + sum(rows_of(args)), x.shape[1]), dtype=dtype)


def on_kernel(
    name: str,
    device: str,
    forward: Forward,
    backward: Backward,
    fresh_statistics: Callable[[GroupNormSiluArgs], torch.Tensor],
    dtype: torch.dtype | None = None,
) -> Callable[[GroupNormSiluArgs], torch.Tensor]:
    """The op on a kernel, as torch.ops.edm_fast.group_norm_silu_NAME; dtype: of the gradients but dx."""
    name = f"group_norm_silu_{name}"
    forward_op = torch_op(
        name,
        device,
        GroupNormSiluArgs,
        forward,
        lambda args: (fresh(args.x), fresh_statistics(args)),
        returns="(Tensor y, Tensor stats)",
    )
    backward_op = torch_op(
        f"{name}_backward",
        device,
        GroupNormSiluArgs,
        backward,
        lambda dy, stats, args: fresh_gradients(args, dtype),
        before=["dy", "stats"],
        returns="(Tensor dx, Tensor dparams)",
    )

    def gradients(args: GroupNormSiluArgs, needs: Any, dy: torch.Tensor, stats: torch.Tensor) -> dict[str, Any]:
        dx, dparams = backward_op(dy, stats, *args)
        if args.scale is None:
            dweight, dbias = dparams.unbind(0)
            return {"x": dx, "weight": dweight, "bias": dbias}
        dweight, dbias, dscale, dshift = dparams.split((1, 1, *rows_of(args)))
        return {"x": dx, "weight": dweight[0], "bias": dbias[0], "scale": dscale, "shift": dshift}

    tensors = ["x", "weight", "bias", "scale", "shift"]
    return differentiable(GroupNormSiluArgs, reference, forward_op, gradients, saved=dict.fromkeys(tensors, tensors))


def arguments_of(args: GroupNormSiluArgs, layout: torch.memory_format) -> dict[str, Any]:
    """The native arguments that forward and backward share."""
    x, weight, bias, _, _, scale, shift, _ = args
    n, c, *space = x.shape
    if weight.dtype != x.dtype or bias.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    scale_rows, shift_rows = rows_of(args)
    return dict(
        x=x.contiguous(memory_format=layout),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        scale=None if scale is None else scale.contiguous(),
        shift=None if shift is None else shift.contiguous(),
        n=n,
        c=c,
        space=math.prod(space),
        groups=args.groups,
        scale_rows=scale_rows,
        shift_rows=shift_rows,
        eps=args.eps,
        silu=args.silu,
        channels_last=channels_are_last(x, layout),
        layout=layout,
    )
