"""group_norm_silu on CPUs in C++: float32 and float64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.group_norm_silu import _kernel
from edm_fast.ops.group_norm_silu.reference import GroupNormSiluArgs


def _statistics(args: GroupNormSiluArgs) -> torch.Tensor:
    """(3, N, groups): of each group the mean, what its rounding to the dtype of x lost, and 1 / sqrt(var + eps)."""
    return args.x.new_empty(scratch(args))


def _forward(args: GroupNormSiluArgs) -> _kernel.Pair:
    layout = native.dense_layout(args.x)
    y, stats = _kernel.fresh(args.x, layout), _statistics(args)
    if y.numel() == 0:
        return y, stats.zero_()
    arguments = _kernel.arguments_of(args, layout)
    native.call("group_norm_silu_fwd_cpu", y=y, stats=stats, x_pitch=args.x.shape[1], **arguments)
    return y, stats


def scratch(args: GroupNormSiluArgs) -> tuple[int, ...]:
    """The shape of the statistics."""
    return 3, args.x.shape[0], args.groups


def lower(result: torch.Tensor, args: GroupNormSiluArgs, stats: torch.Tensor) -> Callable[[int], None]:
    """The call bound to float32 memory: to an image channels last, as x is, or to the (N, 3C) numbers by which a
    convolution of x normalises it (csrc/group_norm_silu.h)."""
    source, pitch = native.window(args.x)
    n, c, h, w = args.x.shape
    tensors = {"weight": args.weight, "bias": args.bias, "stats": stats}
    rows = {"scale": args.scale, "shift": args.shift}
    return native.bind(
        "group_norm_silu_fwd_cpu",
        **{"y" if result.ndim == 4 else "affine": result.data_ptr(), "x": source},
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        **{name: None if row is None else native.window(row)[0] for name, row in rows.items()},
        **{f"{name}_rows": count for name, count in zip(rows, _kernel.rows_of(args))},
        **dict(n=n, c=c, space=h * w, groups=args.groups, eps=float(args.eps), silu=bool(args.silu)),
        channels_last=True,
        x_pitch=pitch,
    )


def _backward(dy: torch.Tensor, stats: torch.Tensor, args: GroupNormSiluArgs) -> _kernel.Pair:
    (dx, dparams), layout = _kernel.fresh_gradients(args), native.dense_layout(args.x)
    if dx.numel() == 0:
        return dx, dparams.zero_()
    arguments, dy = _kernel.arguments_of(args, layout), dy.contiguous(memory_format=layout)
    native.call("group_norm_silu_bwd_cpu", stats=stats, dy=dy, dx=dx, dparams=dparams, **arguments)
    return dx, dparams


def reason(args: GroupNormSiluArgs) -> str | None:
    x, tensors = args.x, args.tensors()
    if any([t.device.type != "cpu" for t in tensors]):
        return "it needs CPU tensors"
    if x.dtype not in native.DTYPES:
        return f"it takes float32 or float64, not {x.dtype}"
    if any([t.dtype != x.dtype for t in tensors[3:]]):
        return "scale and shift have another dtype than x"
    return native.cpu_reason()


forward = _kernel.on_kernel("cpu", "cpu", _forward, _backward, _statistics)
cpu = Implementation("cpu", "cpu", forward, reason, differentiable=True, lower=lower, scratch=scratch)
