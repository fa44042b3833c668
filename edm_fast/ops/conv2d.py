"""conv2d: square convolution (cross-correlation) with zero padding and a fused tail.

    y = (weight * x + bias + emb + residual) scale          added in this order, each term optional

x: (N, C, H, W); weight: (O, C, k, k); bias: (O,); emb: (N, O) or (1, O), one value per channel; residual: as y.
Weight and bias are cast to the dtype of x.

Triton: float16, bfloat16 and float32 (TF32 where torch.backends.cudnn.allow_tf32 is set, as for the reference), of
kernels 1x1 and 3x3. Under autocast it takes the dtype that the reference's convolution would.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.nn.grad

from edm_fast import native
from edm_fast.backend import Implementation, Op, transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check, _triton


class Conv2dArgs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    emb: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    scale: float = 1.0
    padding: int | None = None

    def pad(self) -> int:
        """The rows and columns of zeros on each side of the image."""
        return self.weight.shape[-1] // 2 if self.padding is None else self.padding

    def rows(self) -> torch.Tensor | None:
        """(1 or N, O): the sum of bias and embedding."""
        if self.bias is None:
            return self.emb
        return self.bias[None] if self.emb is None else self.emb + self.bias


def _plus(y: torch.Tensor, term: torch.Tensor, in_place: bool) -> torch.Tensor:
    """y + term in the dtype of y."""
    return y.add_(term) if in_place else (y + term).to(y.dtype)


def reference(args: Conv2dArgs) -> torch.Tensor:
    x, weight, bias, emb, residual, scale, _ = args
    y = F.conv2d(x, weight.to(x.dtype), padding=args.pad())
    in_place = not transformed()  # torch.func and forward mode forbid it
    if bias is not None:
        y = _plus(y, bias.to(x.dtype).reshape(1, -1, 1, 1), in_place)
    if emb is not None:
        y = _plus(y, emb[:, :, None, None], in_place)
    if residual is not None:
        y = _plus(y, residual, in_place)
    return y if scale == 1.0 else y * scale


def check(args: Conv2dArgs) -> None:
    op = "conv2d"
    x, weight, bias, emb, residual, _, padding = args
    _check.floating(op, "x", x, 4)
    _check.floating(op, "weight", weight, 4)
    outputs, inputs, k, k2 = weight.shape
    if k != k2:
        raise UserError(f"{op}: weight has shape {tuple(weight.shape)}; expected a square kernel")
    if x.shape[1] != inputs:
        raise UserError(f"{op}: x has {x.shape[1]} channels; the weight expects {inputs}")
    pad = k // 2 if padding is None else padding
    height, width = (n + 2 * pad - k + 1 for n in x.shape[2:])
    if pad < 0 or min(height, width) < 1:
        raise UserError(f"{op}: images of {tuple(x.shape[2:])} are too small for kernel {k} with padding {pad}")
    _check.shape(op, "bias", bias, (outputs,))
    _check.shape(op, "residual", residual, (x.shape[0], outputs, height, width))
    if emb is not None and tuple(emb.shape) not in {(x.shape[0], outputs), (1, outputs)}:
        raise UserError(f"{op}: emb has shape {tuple(emb.shape)}; expected {(x.shape[0], outputs)}")


# The op of both backends, "native" and "triton": images channels last; rows (1 or N, O): the sum of bias and embedding.
# conv2d_adjoint gives dx; the gradients of residual and rows are dy scale itself and its sums.
_library = torch.library.Library("edm_fast", "FRAGMENT")
_tail = "Tensor? rows, Tensor? residual, float scale, int padding"
_backend = 'str backend="native"'
_library.define(f"conv2d(Tensor x, Tensor weight, {_tail}, {_backend}) -> Tensor")
_library.define(f"conv2d_adjoint(Tensor dy, Tensor weight, int padding, {_backend}) -> Tensor")
_library.define(f"conv2d_weight_gradient(Tensor dy, Tensor x, int kernel, int padding, {_backend}) -> Tensor")

FEW_TILES = 64  # of 4x4 outputs: fewer do not repay the transform of the weights, which is taken at every call


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _images(n: int, c: int, h: int, w: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty((n, c, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def pack(weight: torch.Tensor, algorithm: native.Algorithm, transposed: bool = False) -> torch.Tensor:
    """A weight (O, C, k, k) as `conv2d_fwd_cpu` reads it; `transposed`: of the adjoint."""
    outputs, inputs, kernel, _ = weight.shape
    sizes: dict[str, Any] = dict(algorithm=algorithm, outputs=outputs, inputs=inputs, kernel=kernel)
    sizes["transposed"] = transposed
    packed = weight.new_empty(native.lib.conv2d_packed_size(**sizes))
    native.call("conv2d_pack_cpu", packed=packed, weight=weight.contiguous(), **sizes)
    return packed


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: float,
    padding: int,
    transposed: bool,
) -> torch.Tensor:
    outputs, inputs, k, _ = weight.shape
    x = _last(x)
    n, c, h, w = x.shape
    y = _images(n, inputs if transposed else outputs, h + 2 * padding - k + 1, w + 2 * padding - k + 1, x)
    if y.numel() == 0:
        return y
    algorithm = native.ALGORITHMS["winograd4x4-unpacked" if k == 3 else "direct"]
    packed = pack(weight, algorithm, transposed) if algorithm.packed else weight.contiguous()
    sizes: dict[str, Any] = dict(algorithm=algorithm, n=n, h=h, w=w, inputs=c, kernel=k, padding=padding)
    channels = y.shape[1]
    native.call(
        "conv2d_fwd_cpu",
        layout=torch.channels_last,
        **sizes,
        y=y,
        x=x,
        weight=packed.view(-1),
        bias=None if rows is None else rows.contiguous(),
        residual=None if residual is None else _last(residual),
        outputs=channels,
        bias_rows=0 if rows is None else rows.shape[0],
        y_pitch=channels,
        x_pitch=c,
        residual_pitch=channels,
        scale=scale,
        workspace=x.new_empty(native.lib.conv2d_fwd_workspace(**sizes)),
        transposed=transposed and not algorithm.packed,
    )
    return y


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: float,
    padding: int,
    backend: str = "native",
) -> torch.Tensor:
    if backend == "triton":
        from edm_fast.kernels import conv2d as kernels  # late: a missing triton is a reason, not a crash

        return kernels.forward(x, kernels.pack(weight), rows, residual, scale, padding)
    return _convolve(x, weight, rows, residual, scale, padding, transposed=False)


def _adjoint(dy: torch.Tensor, weight: torch.Tensor, padding: int, backend: str = "native") -> torch.Tensor:
    padding = weight.shape[-1] - 1 - padding
    if backend == "triton":
        from edm_fast.kernels import conv2d as kernels

        return kernels.forward(dy, kernels.pack(weight, transposed=True), padding=padding)
    return _convolve(dy, weight, None, None, 1.0, padding, transposed=True)


def _fake_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    residual: torch.Tensor | None,
    scale: float,
    padding: int,
    backend: str = "native",
) -> torch.Tensor:
    grow = 2 * padding - weight.shape[-1] + 1
    return _images(x.shape[0], weight.shape[0], x.shape[2] + grow, x.shape[3] + grow, x)


def _fake_adjoint(dy: torch.Tensor, weight: torch.Tensor, padding: int, backend: str = "native") -> torch.Tensor:
    grow = weight.shape[-1] - 1 - 2 * padding
    return _images(dy.shape[0], weight.shape[1], dy.shape[2] + grow, dy.shape[3] + grow, dy)


def _weight_gradient(
    dy: torch.Tensor, x: torch.Tensor, kernel: int, padding: int, backend: str = "native"
) -> torch.Tensor:
    """(O, C, k, k); of a 1x1 kernel, a matrix product, the native one is torch's."""
    if backend == "triton":
        from edm_fast.kernels import conv2d as kernels

        return kernels.weight_gradient(dy, x, kernel, padding)
    (n, c, h, w), outputs = x.shape, dy.shape[1]
    if kernel == 1:
        shape, pad = x.new_empty((outputs, c, 1, 1)), [padding] * 2
        mask = (False, True, False)
        args = (None, [1, 1], pad, [1, 1], False, [0, 0], 1, mask)
        return torch.ops.aten.convolution_backward(_last(dy), _last(x), shape, *args)[1].contiguous()
    dweight = x.new_empty((outputs, c, kernel, kernel))
    if x.numel() == 0:
        return dweight.zero_()
    sizes: dict[str, Any] = dict(n=n, h=h, w=w, inputs=c, outputs=outputs, padding=padding)
    workspace = x.new_empty(native.lib.conv2d_bwd_workspace(**sizes))
    dy, x = (t.permute(0, 2, 3, 1).contiguous() for t in (dy, x))  # (N, H, W, C), as both lie channels last
    native.call("conv2d_bwd_cpu", dweight=dweight, x=x, dy=dy, workspace=workspace, **sizes)
    return dweight


def _fake_weight_gradient(
    dy: torch.Tensor, x: torch.Tensor, kernel: int, padding: int, backend: str = "native"
) -> torch.Tensor:
    return x.new_empty((dy.shape[1], x.shape[1], kernel, kernel))


for _device in ("CPU", "CUDA"):
    _library.impl("conv2d", _forward, _device)
    _library.impl("conv2d_adjoint", _adjoint, _device)
    _library.impl("conv2d_weight_gradient", _weight_gradient, _device)
torch.library.register_fake("edm_fast::conv2d_weight_gradient", _fake_weight_gradient, lib=_library)
torch.library.register_fake("edm_fast::conv2d", _fake_forward, lib=_library)
torch.library.register_fake("edm_fast::conv2d_adjoint", _fake_adjoint, lib=_library)


class Convolve(torch.autograd.Function):
    """The op. Its backward is of the same backend once, and the reference's to differentiate or transform it."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        x, weight, rows, residual, scale, padding, backend = args
        ctx.save_for_backward(x, weight)
        ctx.rest = (None if rows is None else rows.shape[0], residual is not None, scale, padding, backend)
        return torch.ops.edm_fast.conv2d(*args)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows, residual, scale, padding, backend = ctx.rest
        dy = dy if scale == 1.0 else dy * scale
        dx = dweight = drows = None
        # the latter: is_grads_batched
        if torch.is_grad_enabled() or transformed(dy):
            if ctx.needs_input_grad[0]:
                dx = F.conv_transpose2d(dy, weight, padding=padding)
            if ctx.needs_input_grad[1]:
                dweight = torch.nn.grad.conv2d_weight(x, weight.shape, dy, padding=padding)
        else:
            dy = _last(dy)
            if ctx.needs_input_grad[0]:
                dx = torch.ops.edm_fast.conv2d_adjoint(dy, weight, padding, backend)
            if ctx.needs_input_grad[1]:
                dweight = torch.ops.edm_fast.conv2d_weight_gradient(dy, x, weight.shape[-1], padding, backend)
        if ctx.needs_input_grad[2]:
            drows = dy.sum((2, 3)) if rows == dy.shape[0] else dy.sum((0, 2, 3))[None]
        return dx, dweight, drows, dy if residual and ctx.needs_input_grad[3] else None, None, None, None


def like(args: Conv2dArgs) -> torch.Tensor:
    return _fake_forward(args.x, args.weight, None, None, 1.0, args.pad())


def cpu_forward(args: Conv2dArgs) -> torch.Tensor:
    return _run(args.x, args.weight, args.rows(), args.residual, float(args.scale), args.pad(), "native")


def _run(*args: Any) -> torch.Tensor:
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in args[:4]]):
        return Convolve.apply(*args)
    return torch.ops.edm_fast.conv2d(*args)


def _kernel_reason(args: Conv2dArgs) -> str | None:
    k, padding = args.weight.shape[-1], args.pad()
    if k not in (1, 3):
        return f"it takes kernels of 1x1 and 3x3, not {k}x{k}"
    if padding > k - 1:
        return f"its backward takes a padding of at most {k - 1} for this kernel, not {padding}"
    return None


def cpu_reason(args: Conv2dArgs) -> str | None:
    tensors = [t for t in args[:5] if t is not None]
    if any([t.device.type != "cpu" for t in tensors]):
        return "it needs CPU tensors"
    if any([t.dtype != torch.float32 for t in tensors]):
        return f"it takes float32 alone, not {args.x.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast wants another dtype"
    return _kernel_reason(args) or native.cpu_reason()


def cpu_slower(args: Conv2dArgs) -> str | None:
    n, _, h, w = args.x.shape
    if args.weight.shape[-1] != 3:
        return "torch is as fast for a 1x1 kernel"
    if min(args.weight.shape[:2]) < 16:
        return "fewer than 16 channels do not repay its transforms"
    if n * -(-h // 4) * -(-w // 4) < FEW_TILES:
        return "so few pixels do not repay the transform of the weights"
    return None


def triton_forward(args: Conv2dArgs) -> torch.Tensor:
    kind, dtype = args.x.device.type, args.x.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    tensors = (None if t is None else t.to(dtype) for t in (args.x, args.weight, args.rows(), args.residual))
    return _run(*tensors, float(args.scale), args.pad(), "triton")


def triton_reason(args: Conv2dArgs) -> str | None:
    return _triton.reason(*args[:5]) or _kernel_reason(args)


def triton_slower(args: Conv2dArgs) -> str | None:
    return _triton.slower(args.x) or "it has not been measured against cuDNN, as accelerate() does for each layer"


# F(4x4) pays for its speed with digits: up to 6 times the largest error of torch's best order of summation, and no more
# than that of its worst
cpu = Implementation("cpu", "cpu", cpu_forward, cpu_reason, cpu_slower, differentiable=True, budget=8.0)
triton = Implementation("triton", "cuda", triton_forward, triton_reason, triton_slower, differentiable=True)
_op = Op("conv2d", Conv2dArgs, reference, check, triton, cpu, like=like)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    emb: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
) -> torch.Tensor:
    """Convolve x (N, C, H, W) with weight (O, C, k, k); `padding` defaults to k // 2 (same size for odd k)."""
    return _op(Conv2dArgs(x, weight, bias, emb, residual, scale, padding))
