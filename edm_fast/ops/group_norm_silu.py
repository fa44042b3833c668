"""group_norm_silu: group normalisation, optional per-image scale and shift, optional SiLU.

    n = (x - mean_g) / sqrt(var_g + eps) * weight + bias          biased variance over each group, float32 statistics
    m = shift + n (scale + 1)                                      if scale and shift are given
    y = m sigmoid(m)                                               if silu

x: (N, C, *spatial); weight, bias: (C,); scale, shift: (N, C) or (1, C).
Source: Wu & He 2018 (group norm); Dhariwal & Nichol 2021 (adaptive scale and shift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast import native
from edm_fast.backend import Implementation, Op, transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check, _triton


class GroupNormSiluArgs(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    groups: int
    eps: float = 1e-5
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    silu: bool = True

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.x, self.weight, self.bias, self.scale, self.shift) if t is not None]


def reference(args: GroupNormSiluArgs) -> torch.Tensor:
    x, weight, bias, groups, eps, scale, shift, silu = args
    y = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if scale is not None and shift is not None:
        scale, shift = (t.reshape(*t.shape, *[1] * (x.ndim - 2)) for t in (scale, shift))  # (N or 1, C, 1, 1)
        y = torch.addcmul(shift, y, scale + 1)
    return F.silu(y) if silu else y


def check(args: GroupNormSiluArgs) -> None:
    op = "group_norm_silu"
    x, weight, bias, groups, _, scale, shift, _ = args
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise UserError(f"{op}: x must be a floating-point tensor of shape (N, C, ...)")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise UserError(f"{op}: {channels} channels do not divide into {groups} groups")
    _check.shape(op, "weight", weight, (channels,))
    _check.shape(op, "bias", bias, (channels,))
    if (scale is None) != (shift is None):
        raise UserError(f"{op}: scale and shift go together")
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and tuple(value.shape) not in {(x.shape[0], channels), (1, channels)}:
            raise UserError(f"{op}: {name} has shape {tuple(value.shape)}; expected {(x.shape[0], channels)}")


# The op of both backends, "native" and "triton", also returns what its backward needs: (3, N, groups), the mean of each
# group, what the mean lost when it was rounded to the dtype of x, and 1 / sqrt(var + eps); of Triton (2, N, groups)
# float32 without the second. The backward returns dx and dparams (rows, C): dweight, dbias, the rows of dscale and of
# dshift, of Triton in float32.
_library = torch.library.Library("edm_fast", "FRAGMENT")
_arguments = "Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int groups, float eps, bool silu"
_arguments += ', str backend="native"'
_library.define(f"group_norm_silu({_arguments}) -> (Tensor y, Tensor stats)")
_library.define(f"group_norm_silu_backward(Tensor dy, Tensor stats, {_arguments}) -> (Tensor dx, Tensor dparams)")
Parameters = Sequence[torch.Tensor | None]  # weight, bias, scale, shift
Pair = tuple[torch.Tensor, torch.Tensor]


def _layout(x: torch.Tensor) -> torch.memory_format:
    return native.layout_of(x) or torch.contiguous_format


def _rows(parameters: Parameters) -> tuple[int, int]:
    """The numbers of rows of scale and shift."""
    scale, shift = parameters[2:4]
    return 0 if scale is None else scale.shape[0], 0 if shift is None else shift.shape[0]


def _arguments_of(
    x: torch.Tensor, parameters: Parameters, groups: int, eps: float, silu: bool, layout: torch.memory_format
) -> dict[str, Any]:
    """The native arguments that forward and backward share."""
    weight, bias, scale, shift = (None if t is None else t.contiguous() for t in parameters)
    scale_rows, shift_rows = _rows(parameters)
    return dict(
        x=x.contiguous(memory_format=layout),
        weight=weight,
        bias=bias,
        scale=scale,
        shift=shift,
        n=x.shape[0],
        c=x.shape[1],
        space=math.prod(x.shape[2:]),
        groups=groups,
        scale_rows=scale_rows,
        shift_rows=shift_rows,
        eps=eps,
        silu=silu,
        channels_last=_is_last(x, layout),
        layout=layout,
    )


def _is_last(x: torch.Tensor, layout: torch.memory_format) -> bool:
    """Whether channels are next to each other, as in vectors, too."""
    return layout == torch.channels_last or math.prod(x.shape[2:]) == 1


def _fake_forward(x: torch.Tensor, *args: Any) -> Pair:
    y, groups = torch.empty_like(x, memory_format=_layout(x)), args[4]
    if _is_triton(args):
        return y, x.new_empty((2, x.shape[0], groups), dtype=torch.float32)
    return y, x.new_empty(3, x.shape[0], groups)


def _is_triton(args: Sequence[Any]) -> bool:
    """By the op's arguments after x."""
    return args[7:] == ("triton",)


def _triton_forward(x: torch.Tensor, parameters: Parameters, groups: int, eps: float, silu: bool) -> Pair:
    from edm_fast.kernels import group_norm_silu as kernels  # late: a missing triton is a reason, not a crash

    layout = _layout(x)
    x = x.contiguous(memory_format=layout)
    if x.numel() == 0:
        return torch.empty_like(x), x.new_zeros((2, x.shape[0], groups), dtype=torch.float32)
    return kernels.forward(x, parameters, groups, eps, silu, _is_last(x, layout))


def _forward(x: torch.Tensor, *args: Any) -> Pair:
    *parameters, groups, eps, silu = args[:7]
    if _is_triton(args):
        return _triton_forward(x, parameters, groups, eps, silu)
    layout = _layout(x)
    y, stats = torch.empty_like(x, memory_format=layout), x.new_empty(3, x.shape[0], groups)
    if y.numel() == 0:
        return y, stats.zero_()
    arguments = _arguments_of(x, parameters, groups, eps, silu, layout)
    native.call(f"group_norm_silu_fwd_{x.device.type}", y=y, stats=stats, x_pitch=x.shape[1], **arguments)
    return y, stats


def _fake_backward(dy: torch.Tensor, stats: torch.Tensor, x: torch.Tensor, *args: Any) -> Pair:
    dtype, rows = torch.float32 if _is_triton(args) else x.dtype, 2 + sum(_rows(args[:4]))
    return torch.empty_like(x, memory_format=_layout(x)), x.new_empty((rows, x.shape[1]), dtype=dtype)


def _backward(dy: torch.Tensor, stats: torch.Tensor, x: torch.Tensor, *args: Any) -> Pair:
    *parameters, groups, eps, silu = args[:7]
    layout = _layout(x)
    if _is_triton(args):
        from edm_fast.kernels import group_norm_silu as kernels

        x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
        if x.numel() == 0:
            dx, dparams = _fake_backward(dy, stats, x, *args)
            return dx, dparams.zero_()
        return kernels.backward(dy, stats, x, parameters, groups, silu, _is_last(x, layout))
    dx, dparams = _fake_backward(dy, stats, x, *args)
    if dx.numel() == 0:
        return dx, dparams.zero_()
    arguments = _arguments_of(x, parameters, groups, eps, silu, layout)
    dy = dy.contiguous(memory_format=layout)
    native.call(f"group_norm_silu_bwd_{x.device.type}", stats=stats, dy=dy, dx=dx, dparams=dparams, **arguments)
    return dx, dparams


for _device in ("CPU", "CUDA"):
    _library.impl("group_norm_silu", _forward, _device)
    _library.impl("group_norm_silu_backward", _backward, _device)
torch.library.register_fake("edm_fast::group_norm_silu", _fake_forward, lib=_library)
torch.library.register_fake("edm_fast::group_norm_silu_backward", _fake_backward, lib=_library)


class Normalise(torch.autograd.Function):
    """The op; keeps x and the statistics, and nothing else of the size of x."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        y, stats = torch.ops.edm_fast.group_norm_silu(*args)
        ctx.save_for_backward(stats, *args[:5])
        ctx.rest = args[5:]
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        weight, bias, scale, shift = saved[2:]
        if transformed():  # the op would lose what `dy` carries
            groups, eps, silu, _ = ctx.rest
            given = [t for t in saved[1:] if t is not None]

            def formula(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
                scale, shift = rows or (None, None)
                return reference(GroupNormSiluArgs(x, weight, bias, groups, eps, scale, shift, silu))

            with torch.enable_grad():  # or torch has no forward mode for these backward functions
                found = torch.func.vjp(formula, *given)[1](dy)
            found = [t.view_as(t) for t in found]  # outside, so that they keep the tangent but no graph
            return *found, *[None] * (9 - len(found))
        gradients = Gradients.apply if torch.is_grad_enabled() else torch.ops.edm_fast.group_norm_silu_backward
        dx, dparams = gradients(dy, *saved, *ctx.rest)
        if scale is None:
            dweight, dbias = dparams.unbind(0)
            return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), *[None] * 6
        dweight, dbias, dscale, dshift = dparams.split((1, 1, scale.shape[0], shift.shape[0]))
        rows = dscale.to(scale.dtype), dshift.to(shift.dtype)
        return dx, dweight[0].to(weight.dtype), dbias[0].to(bias.dtype), *rows, *[None] * 4


class Gradients(torch.autograd.Function):
    """The backward of Normalise as a function of its own; its backward goes through the reference, to any order."""

    @staticmethod
    def forward(ctx: Any, dy: torch.Tensor, stats: torch.Tensor, *args: Any) -> Pair:
        ctx.save_for_backward(dy, *args[:5])
        ctx.rest = args[5:]
        return torch.ops.edm_fast.group_norm_silu_backward(dy, stats, *args)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor, ddparams: torch.Tensor) -> Any:
        groups, eps, silu, _ = ctx.rest
        with torch.enable_grad():
            # aliases, so that a scale that was computed from x counts once
            saved = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
            aliases: list[Any] = [None if t is None else t.view_as(t) for t in saved]
            dy, x, weight, bias, scale, shift = aliases
            y = reference(GroupNormSiluArgs(x, weight, bias, groups, eps, scale, shift, silu))
            inputs = [t for t in aliases[1:] if t is not None]
            dx, *others = torch.autograd.grad(y, inputs, dy, create_graph=True)
            dparams = torch.cat([g.reshape(-1, g.shape[-1]) for g in others])
        wanted = [t for t in aliases if t is not None]
        found = iter(
            torch.autograd.grad(
                (dx, dparams), wanted, (ddx, ddparams), create_graph=torch.is_grad_enabled(), allow_unused=True
            )
        )
        ddy, *rest = (None if t is None else next(found) for t in aliases)
        return ddy, None, *rest, *[None] * 4


def like(args: GroupNormSiluArgs) -> torch.Tensor:
    return torch.empty(args.x.shape, dtype=args.x.dtype, device=args.x.device)


def cpu_forward(args: GroupNormSiluArgs) -> torch.Tensor:
    x, weight, bias, groups, eps, scale, shift, silu = args
    if weight.dtype != x.dtype or bias.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return _run(x, weight, bias, scale, shift, groups, eps, silu, "native")


def _run(*args: Any) -> torch.Tensor:
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in args[:5]]):
        return Normalise.apply(*args)
    return torch.ops.edm_fast.group_norm_silu(*args)[0]


def cpu_reason(args: GroupNormSiluArgs) -> str | None:
    x, tensors = args.x, args.tensors()
    if any([t.device.type != "cpu" for t in tensors]):
        return "it needs CPU tensors"
    if x.dtype not in native.DTYPES:
        return f"it takes float32 or float64, not {x.dtype}"
    if any([t.dtype != x.dtype for t in tensors[3:]]):
        return "scale and shift have another dtype than x"
    return native.cpu_reason()


def cuda_forward(args: GroupNormSiluArgs) -> torch.Tensor:
    x, weight, bias, groups, eps, scale, shift, silu = args
    layout = _layout(x)
    y = torch.empty_like(x, memory_format=layout)
    if y.numel() == 0:
        return y
    parameters = (weight.to(x.dtype), bias.to(x.dtype), scale, shift)
    arguments = dict(_arguments_of(x, parameters, groups, eps, silu, layout), y=y, x_pitch=x.shape[1])
    size = native.cuda_workspace("group_norm_silu_fwd", **arguments)
    workspace = x.new_empty(size // x.element_size()) if size else None
    native.call("group_norm_silu_fwd_cuda", workspace=workspace, **arguments)
    return y


def cuda_reason(args: GroupNormSiluArgs) -> str | None:
    x, groups, tensors = args.x, args.groups, args.tensors()
    if any([t.device.type != "cuda" or t.device != x.device for t in tensors]):
        return "it needs CUDA tensors of one device"
    if x.dtype not in native.CUDA_DTYPES:
        return f"it takes float16, bfloat16, float32 and float64, not {x.dtype}"
    if any([t.dtype != x.dtype for t in tensors[3:]]):
        return "scale and shift have another dtype than x"
    if x.shape[1] // groups > 256:
        return f"it takes groups of up to 256 channels, not {x.shape[1] // groups}"
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into it"
    return native.cuda_reason()


def triton_forward(args: GroupNormSiluArgs) -> torch.Tensor:
    """Weight and bias, scale and shift in dtypes of their own: everything is float32 inside."""
    x, weight, bias, groups, eps, scale, shift, silu = args
    return _run(x, weight, bias, scale, shift, groups, eps, silu, "triton")


def triton_reason(args: GroupNormSiluArgs) -> str | None:
    return _triton.reason(*args.tensors())


def triton_slower(args: GroupNormSiluArgs) -> str | None:
    return _triton.slower(args.x)


cpu = Implementation("cpu", "cpu", cpu_forward, cpu_reason, differentiable=True)
cuda = Implementation("cuda", "cuda", cuda_forward, cuda_reason)
triton = Implementation("triton", "cuda", triton_forward, triton_reason, triton_slower, differentiable=True)
_op = Op("group_norm_silu", GroupNormSiluArgs, reference, check, triton, cuda, cpu, like=like)


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-5,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    silu: bool = True,
) -> torch.Tensor:
    """Normalise x (N, C, *spatial) in `groups` groups of channels; scale and shift (N, C) after it; then SiLU."""
    return _op(GroupNormSiluArgs(x, weight, bias, groups, eps, scale, shift, silu))
