"""conv2d on CPUs in C++: kernels 1x1 and 3x3 in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast import native
from edm_fast.backend import Implementation, transformed
from edm_fast.ops import _cpu
from edm_fast.ops.conv2d import _kernel
from edm_fast.ops.conv2d._kernel import channels_last
from edm_fast.ops.conv2d.reference import Conv2dArgs, fresh

# of a convolution: of image and weight, and whether it is the adjoint
Choose = Callable[[torch.Tensor, torch.Tensor, bool], native.Algorithm]
FEW_TILES = 16  # of 4x4 outputs: fewer do not repay the transform of the weights, which is taken at every call


def pack(weight: torch.Tensor, algorithm: native.Algorithm, transposed: bool = False) -> torch.Tensor:
    """A weight (O, C, k, k) as `conv2d_fwd_cpu` reads it, or what balances it; `transposed`: of the adjoint."""
    outputs, inputs, kernel, _ = weight.shape
    sizes: dict[str, Any] = dict(
        algorithm=algorithm, outputs=outputs, inputs=inputs, kernel=kernel, transposed=transposed
    )
    packed = weight.new_empty(native.lib.conv2d_packed_size(**sizes))
    native.call("conv2d_pack_cpu", packed=packed, weight=weight.contiguous(), **sizes)
    return packed


def always(x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> native.Algorithm:
    """The same for every size: outside of plans nothing is measured."""
    return native.ALGORITHMS["winograd4x4-unpacked" if weight.shape[-1] == 3 else "direct"]


def convolve(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    padding: int,
    how: tuple[Choose, Callable[..., torch.Tensor]],
    transposed: bool = False,
    tail: Conv2dArgs | None = None,
) -> torch.Tensor:
    """The convolution, or its adjoint, with the terms and the scale of `tail`: written to y, which it returns.

    how: what chooses the algorithm, and `pack` or one that keeps what it packed. y is of the size that it makes of x.
    """
    x, k = channels_last(x), weight.shape[-1]
    (n, inputs, h, w), outputs = x.shape, y.shape[1]
    if y.numel() == 0:
        return y
    choose, packed = how
    algorithm = choose(x, weight, transposed)
    rows = None if tail is None else _kernel.rows(tail)
    residual = None if tail is None else tail.residual
    sizes: dict[str, Any] = dict(algorithm=algorithm, n=n, h=h, w=w, inputs=inputs, kernel=k, padding=padding)
    native.call(
        "conv2d_fwd_cpu",
        layout=torch.channels_last,
        **sizes,
        y=y,
        x=x,
        weight=(packed(weight, algorithm, transposed) if algorithm.packed else weight.contiguous()).view(-1),
        balance=packed(weight, algorithm, transposed) if algorithm.paired and not algorithm.packed else None,
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


def convolutions(
    choose: Choose, packed: Callable[..., torch.Tensor] = pack
) -> tuple[Callable[[Conv2dArgs], torch.Tensor], _kernel.Backward]:
    """The forward function of the arguments, and the adjoint of dy scale and them."""
    how = choose, packed

    def forward(args: Conv2dArgs) -> torch.Tensor:
        return convolve(fresh(args), args.x, args.weight, args.pad(), how, tail=args)

    def adjoint(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
        dx = _kernel.fresh_adjoint(dy, args)
        return convolve(dx, dy, args.weight, args.weight.shape[-1] - 1 - args.pad(), how, transposed=True)

    return forward, adjoint


def on_algorithms(choose: Choose, packed: Callable[..., torch.Tensor]) -> Callable[[Conv2dArgs], torch.Tensor]:
    """The op for plans: algorithms are chosen, and weights packed, by these functions. Weights have no gradients."""
    forward, adjoint = convolutions(choose, packed)

    def adjoint_of(dy: torch.Tensor, *flat: Any) -> torch.Tensor:
        if transformed(dy):  # torch takes batches of gradients apart for its own ops
            return torch.ops.edm_fast.conv2d_cpu_adjoint(dy, *flat)
        return adjoint(dy, Conv2dArgs(*flat))

    return _kernel.with_gradients(lambda *flat: forward(Conv2dArgs(*flat)), adjoint_of)


def lower(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    algorithm: native.Algorithm,
    kernel: int,
    padding: int,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    silu: bool = False,
    clip: float | None = None,
    **memory: torch.Tensor | None,
) -> Callable[[int], None]:
    """The call from x to y, float32 images (N, C, H, W) channels last or vectors (N, C), bound to their memory.

    weight: packed for the algorithm, if that has it packed; rows (1 or N, O): bias and embedding; memory: workspace,
    balance and affine, as in csrc/conv2d.h.
    """
    (to, y_pitch), (source, x_pitch) = native.window(y), native.window(x)
    other, residual_pitch = (0, 0) if residual is None else native.window(residual)
    n, inputs, h, w = (*x.shape, 1, 1)[:4]
    return native.bind(
        "conv2d_fwd_cpu",
        **dict(algorithm=algorithm, y=to, x=source, weight=weight.data_ptr(), residual=other, n=n, h=h, w=w),
        **dict(
            inputs=inputs,
            outputs=y.shape[1],
            kernel=kernel,
            padding=padding,
            scale=float(scale),
            silu=silu,
            clip=float(clip or 0),
        ),
        **dict(y_pitch=y_pitch, x_pitch=x_pitch, residual_pitch=residual_pitch),
        bias=0 if rows is None else native.window(rows)[0],
        bias_rows=0 if rows is None else rows.shape[0],
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in memory.items()},
    )


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
    why = _cpu.float32_reason(args.x, args.weight, args.bias, args.emb, args.residual)
    return why or _kernel.reason(args) or native.cpu_reason()


def slower(args: Conv2dArgs) -> str | None:
    n, _, h, w = args.x.shape
    if args.weight.shape[-1] != 3:
        return "torch is as fast for a 1x1 kernel"
    if min(args.weight.shape[:2]) < 16:
        return "fewer than 16 channels do not repay its transforms"
    if n * -(-h // 4) * -(-w // 4) < FEW_TILES:
        return "so few pixels do not repay the transform of the weights"
    return None


forward = _kernel.on_kernel("cpu", "cpu", *convolutions(always), _weight_gradient)
# F(4x4) pays for its speed with digits: up to 6 times the largest error of torch's best order of summation, and no more
# than that of its worst
cpu = Implementation("cpu", "cpu", forward, reason, slower, differentiable=True, budget=8.0)
