"""solver_update on a kernel: what the backends have in common."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from edm_fast import native
from edm_fast.backend import traced
from edm_fast.ops.solver_update.reference import Result, SolverUpdateArgs

MAX_TERMS = 8  # of csrc/solver_update.h and kernels/solver_update.py


def one_pass_reason(args: SolverUpdateArgs, on_device: bool) -> str | None:
    """Why one pass over memory does not do. on_device: whether the kernel reads coefficients there."""
    numbers, base = args.on_device(), args.base
    if numbers and not on_device:
        return "a coefficient is a tensor"
    like = base.dtype, base.device, 1
    if any([(n.dtype, n.device, n.numel()) != like or n.ndim > base.ndim for n in numbers]):
        return "a coefficient is a tensor of another dtype or device, or of more numbers than one"
    if native.layout_of(*args.tensors()) is None:
        return "the tensors do not share one dense memory layout"
    return None


def common_reason(args: SolverUpdateArgs) -> str | None:
    """Why no kernel takes these arguments, whatever the device and the dtype."""
    if len(args.terms) > MAX_TERMS:
        return f"it takes {MAX_TERMS} terms, not {len(args.terms)}"
    if torch.compiler.is_compiling():
        return "torch.compile fuses the plain formula itself"
    # this is no op of torch's: it cannot be recorded, nor run on a tensor that only stands for another
    if traced():
        return "a dispatch mode or a trace needs the plain formula"
    if any([type(t) not in (torch.Tensor, Parameter) for t in args.tensors()]):
        return "a subclass of tensors needs the plain formula"
    return None


def native_reason(base: torch.Tensor) -> str | None:
    return None if base.dtype in native.DTYPES else f"it takes float32 or float64, not {base.dtype}"


def results(args: SolverUpdateArgs) -> Result:
    return torch.empty_like(args.base), torch.empty_like(args.base) if args.D is not None else None


def native_forward(args: SolverUpdateArgs) -> Result:
    """One pass over memory; bit-identical to the reference, as each operation rounds on its own in the same order.

    Takes coefficients that are numbers, and tensors of one layout.
    """
    y, d = results(args)
    name = f"solver_update_fwd_{y.device.type}"
    native.call(name, layout=native.dense_layout(y), y=y, d=d, size=y.numel(), **args._asdict())
    return y, d
