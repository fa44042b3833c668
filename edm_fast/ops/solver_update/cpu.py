"""solver_update on CPUs in C++: float32 and float64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.solver_update import _kernel
from edm_fast.ops.solver_update.reference import Result, Scalar, SolverUpdateArgs


def reason(args: SolverUpdateArgs) -> str | None:
    base = args.base
    if base.device.type != "cpu":
        return "it needs CPU tensors"
    for number in args.on_device():
        one = number.numel() == 1 and number.ndim <= base.ndim
        each = base.ndim > 0 and number.shape == (base.shape[0], *[1] * (base.ndim - 1))
        if number.dtype != base.dtype or number.device != base.device or not (each or one):
            return "a coefficient is a tensor of another dtype or device, or of more numbers than one for each image"
    return native.cpu_reason() or _kernel.native_reason(base) or _kernel.common_reason(args)


def slower(args: SolverUpdateArgs) -> str | None:
    return _kernel.one_pass_reason(args, on_device=False)


def forward(args: SolverUpdateArgs) -> Result:
    """Takes any layout, and coefficients that are tensors of one number, or of one for each image."""
    numbers = args.on_device()
    if args.base.numel() == 0:
        return _kernel.results(args)
    if native.layout_of(*args.tensors()) is None:
        args = _each_tensor(args, torch.Tensor.contiguous)
    elif not numbers:
        return _kernel.native_forward(args)
    count = max([1, *(number.numel() for number in numbers)])
    parts = [_kernel.native_forward(_image(args, i, count)) for i in range(count)]
    if count == 1:
        return parts[0]
    slopes = [d for _, d in parts if d is not None]
    return torch.cat([y for y, _ in parts]), torch.cat(slopes) if slopes else None


def _each_tensor(args: SolverUpdateArgs, function: Callable[[torch.Tensor], torch.Tensor]) -> SolverUpdateArgs:
    base, x, D, noise = (None if t is None else function(t) for t in (args.base, args.x, args.D, args.noise))
    assert base is not None
    return args._replace(base=base, x=x, D=D, noise=noise, terms=[function(t) for t in args.terms])


def _image(args: SolverUpdateArgs, i: int, count: int) -> SolverUpdateArgs:
    """The call of image i alone, with its own coefficients as numbers; of all images if count is 1."""

    def number(value: Scalar) -> float:
        return value.reshape(-1)[min(i, value.numel() - 1)].item() if isinstance(value, torch.Tensor) else value

    own = args if count == 1 else _each_tensor(args, lambda t: t[i : i + 1])
    p, q, t, a, h, w, c = map(number, args.numbers())
    return own._replace(weights=[*map(number, args.weights)], p=p, q=q, t=t, a=a, h=h, w=w, c=c)


cpu = Implementation("cpu", "cpu", forward, reason, slower)
