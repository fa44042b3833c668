"""conv2d on CPUs in C++: kernels 1x1 and 3x3 in float32."""

from __future__ import annotations

from typing import Any

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.conv2d import _kernel
from edm_fast.ops.conv2d._kernel import channels_last
from edm_fast.ops.conv2d.reference import Conv2dArgs, fresh

FEW_TILES = 64  # of 4x4 outputs: fewer do not repay the transform of the weights, which is taken at every call


def pack(weight: torch.Tensor, algorithm: native.Algorithm, transposed: bool = False) -> torch.Tensor:
    """A weight (O, C, k, k) as `conv2d_fwd_cpu` reads it; `transposed`: of the adjoint."""
    outputs, inputs, kernel, _ = weight.shape
    sizes: dict[str, Any] = dict(
        algorithm=algorithm, outputs=outputs, inputs=inputs, kernel=kernel, transposed=transposed
    )
    packed = weight.new_empty(native.lib.conv2d_packed_size(**sizes))
    native.call("conv2d_pack_cpu", packed=packed, weight=weight.contiguous(), **sizes)
    return packed


def _convolve(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    padding: int,
    transposed: bool = False,
    tail: Conv2dArgs | None = None,
) -> torch.Tensor:
    """The convolution, or its adjoint, with the terms and the scale of `tail`: written to y, which it returns."""
    x, k = channels_last(x), weight.shape[-1]
    (n, inputs, h, w), outputs = x.shape, y.shape[1]
    if y.numel() == 0:
        return y
    algorithm = native.ALGORITHMS["winograd4x4-unpacked" if k == 3 else "direct"]
    rows = None if tail is None else _kernel.rows(tail)
    residual = None if tail is None else tail.residual
    sizes: dict[str, Any] = dict(algorithm=algorithm, n=n, h=h, w=w, inputs=inputs, kernel=k, padding=padding)
    native.call(
        "conv2d_fwd_cpu",
        layout=torch.channels_last,
        **sizes,
        y=y,
        x=x,
        weight=(pack(weight, algorithm, transposed) if algorithm.packed else weight.contiguous()).view(-1),
        bias=None if rows is None else rows.contiguous(),
        residual=None if residual is None else channels_last(residual),
        outputs=outputs,
        bias_rows=0 if rows is None else rows.shape[0],
        y_pitch=outputs,
        x_pitch=inputs,
        residual_pitch=outputs,
        scale=1.0 if tail is None else float(tail.scale),
        workspace=x.new_empty(native.lib.conv2d_fwd_workspace(**sizes)),
        transposed=transposed and not algorithm.packed,
    )
    return y


def _forward(args: Conv2dArgs) -> torch.Tensor:
    return _convolve(fresh(args), args.x, args.weight, args.pad(), tail=args)


def _adjoint(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    dx = _kernel.fresh_adjoint(dy, args)
    return _convolve(dx, dy, args.weight, args.weight.shape[-1] - 1 - args.pad(), transposed=True)


def _weight_gradient(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    """(O, C, k, k); of a 1x1 kernel, a matrix product, it is torch's."""
    dweight, x, padding = _kernel.fresh_weight_gradient(args), args.x, args.pad()
    if x.numel() == 0:
        return dweight.zero_()
    if args.weight.shape[-1] == 1:
        rest = (None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, (False, True, False))
        found = torch.ops.aten.convolution_backward(channels_last(dy), channels_last(x), dweight, *rest)
        return found[1].contiguous()
    n, c, h, w = x.shape
    sizes: dict[str, Any] = dict(n=n, h=h, w=w, inputs=c, outputs=dy.shape[1], padding=padding)
    workspace = x.new_empty(native.lib.conv2d_bwd_workspace(**sizes))
    dy, x = (t.permute(0, 2, 3, 1).contiguous() for t in (dy, x))  # (N, H, W, C), as both lie channels last
    native.call("conv2d_bwd_cpu", dweight=dweight, x=x, dy=dy, workspace=workspace, **sizes)
    return dweight


def reason(args: Conv2dArgs) -> str | None:
    tensors = [t for t in (args.x, args.weight, args.bias, args.emb, args.residual) if t is not None]
    if any([t.device.type != "cpu" for t in tensors]):
        return "it needs CPU tensors"
    if any([t.dtype != torch.float32 for t in tensors]):
        return f"it takes float32 alone, not {next(t.dtype for t in tensors if t.dtype != torch.float32)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast wants another dtype"
    return _kernel.reason(args) or native.cpu_reason()


def slower(args: Conv2dArgs) -> str | None:
    n, _, h, w = args.x.shape
    if args.weight.shape[-1] != 3:
        return "torch is as fast for a 1x1 kernel"
    if min(args.weight.shape[:2]) < 16:
        return "fewer than 16 channels do not repay its transforms"
    if n * -(-h // 4) * -(-w // 4) < FEW_TILES:
        return "so few pixels do not repay the transform of the weights"
    return None


forward = _kernel.on_kernel("cpu", "cpu", _forward, _adjoint, _weight_gradient)
# F(4x4) pays for its speed with digits: up to 6 times the largest error of torch's best order of summation, and no more
# than that of its worst
cpu = Implementation("cpu", "cpu", forward, reason, slower, differentiable=True, budget=8.0)
