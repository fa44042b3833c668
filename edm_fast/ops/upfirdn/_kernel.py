"""upfirdn on a kernel: what the backends have in common.

Their kernels compute one linear map or its adjoint, with the output size given, so that each is the other's backward:
    down: y[i] = gain sum_k x[factor i - padding + k] f[k]        up: y[i] = gain sum_j x[j] f[i + padding - factor j]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from edm_fast import native
from edm_fast.ops._fused import differentiable, torch_op
from edm_fast.ops.upfirdn.reference import UpfirdnArgs, reference

# kernel(y, x, f, up, factor, padding, gain, last) writes y; `last`: images lie channels last, and contiguous otherwise
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool, int, int, float, bool], None]


def _fresh(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(N, C, *size) in the memory layout of x (N, C, H, W)."""
    shape = (*x.shape[:2], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=native.dense_layout(x))


def on_kernel(name: str, device: str, kernel: Kernel) -> Callable[[UpfirdnArgs], torch.Tensor]:
    """The op on a kernel, as torch.ops.edm_fast.upfirdn_NAME."""

    def resample(x: torch.Tensor, args: UpfirdnArgs, up: bool, size: Sequence[int]) -> torch.Tensor:
        y, layout = _fresh(x, size), native.dense_layout(x)
        if y.numel():
            x, f, factor = x.contiguous(memory_format=layout), args.f.to(x.dtype).contiguous(), max(args.up, args.down)
            kernel(y, x, f, up, factor, args.padding, float(args.up**2), layout == torch.channels_last)
        return y

    def forward(args: UpfirdnArgs) -> torch.Tensor:
        return resample(args.x, args, args.up > 1, args.size())

    def adjoint(dy: torch.Tensor, args: UpfirdnArgs) -> torch.Tensor:
        return resample(dy, args, args.up == 1, args.x.shape[2:])

    name = f"upfirdn_{name}"
    forward_op = torch_op(name, device, UpfirdnArgs, forward, lambda args: _fresh(args.x, args.size()))
    adjoint_op = torch_op(
        f"{name}_adjoint",
        device,
        UpfirdnArgs,
        adjoint,
        lambda dy, args: _fresh(dy, args.x.shape[2:]),
        before=["dy"],
    )
    return differentiable(
        UpfirdnArgs, reference, forward_op, lambda args, needs, dy: {"x": adjoint_op(dy, *args)}, saved={"f": ["x"]}
    )


def native_kernel(
    y: torch.Tensor, x: torch.Tensor, f: torch.Tensor, up: bool, factor: int, padding: int, gain: float, last: bool
) -> None:
    """In C++ for CPUs, or CUDA C++."""
    how: dict[str, Any] = dict(up=up, factor=factor, padding=padding, gain=gain, channels_last=last, x_pitch=x.shape[1])
    layout = torch.channels_last if last else torch.contiguous_format
    native.call(f"upfirdn_fwd_{x.device.type}", layout=layout, y=y, x=x, f=f, **sizes(y, x, f), **how)


def sizes(y: torch.Tensor, x: torch.Tensor, f: torch.Tensor) -> dict[str, Any]:
    """Of the images and the filter, by their native names."""
    (n, c, h, w), (out_h, out_w) = x.shape, y.shape[2:]
    return dict(n=n, c=c, h=h, w=w, out_h=out_h, out_w=out_w, taps=f.shape[0])


def reason(args: UpfirdnArgs) -> str | None:
    if args.f.device != args.x.device:
        return "filter and image are on different devices"
    if args.f.requires_grad and torch.is_grad_enabled():
        return "it has no gradient for the filter"
    return None
