"""conv2d on a kernel: what the backends have in common. Results lie channels last.

The adjoint gives dx; the gradient of the residual is dy scale itself, and those of bias and embedding are its sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast.backend import transformed
from edm_fast.ops._fused import differentiable, torch_op
from edm_fast.ops.conv2d.reference import Conv2dArgs, fresh, reference

# of dy scale, channels last, and the arguments
Backward = Callable[[torch.Tensor, Conv2dArgs], torch.Tensor]
# of dy, channels last, and the arguments: dy scale, and the gradient of `rows`, or of one for each image
TailBackward = Callable[[torch.Tensor, Conv2dArgs], tuple[torch.Tensor, torch.Tensor]]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def rows(args: Conv2dArgs) -> torch.Tensor | None:
    """(1 or N, O), in the dtype of x: the sum of bias and embedding."""
    if args.bias is None:
        return None if args.emb is None else args.emb.to(args.x.dtype)
    return (args.bias[None] if args.emb is None else args.emb + args.bias).to(args.x.dtype)


def fresh_adjoint(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    return torch.empty(args.x.shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)


def fresh_weight_gradient(args: Conv2dArgs) -> torch.Tensor:
    return args.x.new_empty(args.weight.shape)


def tail_backward(dy: torch.Tensor, args: Conv2dArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """By torch."""
    dy = dy if args.scale == 1.0 else dy * args.scale
    own = args.emb is not None and args.emb.shape[0] == dy.shape[0]
    return dy, dy.sum((2, 3)) if own else dy.sum((0, 2, 3))[None]


def in_autocast(args: Conv2dArgs) -> Conv2dArgs:
    """With x in the dtype of the reference's convolution: that of autocast, where it is on."""
    kind = args.x.device.type
    return args._replace(x=args.x.to(torch.get_autocast_dtype(kind))) if torch.is_autocast_enabled(kind) else args


def on_kernel(
    name: str,
    device: str,
    forward: Callable[[Conv2dArgs], torch.Tensor],
    adjoint: Backward,
    weight_gradient: Backward,
    tail_backward: TailBackward = tail_backward,
) -> Callable[[Conv2dArgs], torch.Tensor]:
    """The op on a kernel, as torch.ops.edm_fast.conv2d_NAME."""
    name = f"conv2d_{name}"
    forward_op = torch_op(name, device, Conv2dArgs, forward, fresh)
    adjoint_op = torch_op(f"{name}_adjoint", device, Conv2dArgs, adjoint, fresh_adjoint, before=["dy"])
    weight_op = torch_op(
        f"{name}_weight_gradient",
        device,
        Conv2dArgs,
        weight_gradient,
        lambda dy, args: fresh_weight_gradient(args),
        before=["dy"],
    )

    return with_gradients(forward_op, adjoint_op, weight_op, tail_backward)


def with_gradients(
    forward: Callable[..., torch.Tensor],
    adjoint: Callable[..., torch.Tensor],
    weight_gradient: Callable[..., torch.Tensor] | None = None,
    tail_backward: TailBackward = tail_backward,
) -> Callable[[Conv2dArgs], torch.Tensor]:
    """The op of three functions of the arguments one by one, the last two of dy scale before them."""

    def gradients(args: Conv2dArgs, needs: Any, dy: torch.Tensor) -> dict[str, torch.Tensor]:
        dy = dy if transformed(dy) else channels_last(dy)  # batches of gradients have no such layout
        if needs.bias or needs.emb:
            dy, drows = tail_backward(dy, args)
        elif args.scale != 1.0:
            dy = dy * args.scale
        found = {"residual": dy} if needs.residual else {}
        if needs.x:
            found["x"] = adjoint(dy, *args)
        if needs.weight and weight_gradient is not None:
            found["weight"] = weight_gradient(dy, *args)
        if needs.emb and args.emb is not None:
            found["emb"] = drows if args.emb.shape == drows.shape else drows.sum(0, keepdim=True)
        if needs.bias:
            found["bias"] = drows.sum(0)
        return found

    return differentiable(Conv2dArgs, reference, forward, gradients, saved={"x": ["weight"], "weight": ["x"]})


def reason(args: Conv2dArgs) -> str | None:
    if args.clip is not None:
        return "outside of plans it does not clip"
    k, padding = args.weight.shape[-1], args.pad()
    if k not in (1, 3):
        return f"it takes kernels of 1x1 and 3x3, not {k}x{k}"
    if padding > k - 1:
        return f"its backward takes a padding of at most {k - 1} for this kernel, not {padding}"
    return None
