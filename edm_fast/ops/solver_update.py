"""solver_update: the arithmetic of one solver stage, every kind of it, in one pass over memory.

    d = (p x - q D) / t                                            the slope, if D is given
    y = a base + h (sum_k weights_k terms_k + w d) + c noise       evaluated in this order

With base = x and the defaults this is Euler on Karras et al. 2022, Eq. 1 (d = (x - D)/t, y = x + h d); Heun's second
stage is terms = [d_0], weights = [1/2], w = 1/2 (Alg. 1, line 8); noise injection is a base + c noise (Alg. 2, line 6);
Eq. 4 of the general schedule sets p = sigma'/sigma + s'/s and q = sigma' s/sigma with t = 1; a multistep solver has
terms = [D_k]; preconditioning (Eq. 7) is a = c_skip, terms = [F], weights = [c_out].

All tensors have one shape and dtype. Coefficients are Python floats (host scalars: no device sync) or tensors that
broadcast, whose values nobody reads on the host. A factor of exactly 1 and an absent term cost nothing and round
nothing.

Backends: C++ for CPUs and CUDA C++ in float32 and float64, and Triton in these and half precision; Triton also takes
coefficients that are tensors of one element. Each gives the bits of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from edm_fast import native
from edm_fast.backend import Implementation, Op
from edm_fast.errors import UserError
from edm_fast.ops import _triton

Scalar = float | torch.Tensor


class SolverUpdateArgs(NamedTuple):
    base: torch.Tensor
    x: torch.Tensor | None = None
    D: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    terms: Sequence[torch.Tensor] = ()
    weights: Sequence[Scalar] = ()
    p: Scalar = 1.0
    q: Scalar = 1.0
    t: Scalar = 1.0
    a: Scalar = 1.0
    h: Scalar = 1.0
    w: Scalar = 1.0
    c: Scalar = 0.0

    def tensors(self) -> list[torch.Tensor]:
        """Those of the shape of `base`."""
        return [t for t in (self.base, self.x, self.D, self.noise, *self.terms) if t is not None]

    def numbers(self) -> tuple[Scalar, ...]:
        """The coefficients but for the weights, in the order of the kernels."""
        return self.p, self.q, self.t, self.a, self.h, self.w, self.c

    def on_device(self) -> list[torch.Tensor]:
        """The coefficients that are tensors."""
        return [number for number in (*self.weights, *self.numbers()) if isinstance(number, torch.Tensor)]


def _times(c: Scalar, x: torch.Tensor) -> torch.Tensor:
    return x if isinstance(c, (int, float)) and c == 1 else c * x


def reference(args: SolverUpdateArgs) -> tuple[torch.Tensor, torch.Tensor | None]:
    base, x, D, noise, terms, weights, p, q, t, a, h, w, c = args
    d = None
    if x is not None and D is not None:
        d = _times(p, x) - _times(q, D)
        # by a tensor: CUDA would turn division by a number into multiplication with its rounded inverse
        if isinstance(t, torch.Tensor):
            d = d / t
        elif t != 1:
            d = d / torch.full((), t, dtype=d.dtype, device=d.device)
    total = None
    pairs = [*zip(weights, terms, strict=True)] + ([(w, d)] if d is not None else [])
    for weight, term in pairs:
        part = _times(weight, term)
        total = part if total is None else total + part
    y = _times(a, base)
    if total is not None:
        y = y + _times(h, total)
    if noise is not None:
        y = y + _times(c, noise)
    return y, d


def check(args: SolverUpdateArgs) -> None:
    op = "solver_update"
    base, x, D, noise, terms, weights, *_ = args
    if not isinstance(base, torch.Tensor) or not base.is_floating_point():
        raise UserError(f"{op}: base must be a floating-point tensor")
    if (x is None) != (D is None):
        raise UserError(f"{op}: x and D go together")
    if len(terms) != len(weights):
        raise UserError(f"{op}: {len(terms)} terms but {len(weights)} weights")
    for tensor in (x, D, noise, *terms):
        if tensor is not None and (tensor.shape != base.shape or tensor.dtype != base.dtype):
            raise UserError(
                f"{op}: a tensor is {tensor.dtype} {tuple(tensor.shape)}; expected {base.dtype} {tuple(base.shape)}"
            )


MAX_TERMS = 8  # of csrc/solver_update.h and kernels/solver_update.py


def _fused_reason(args: SolverUpdateArgs, on_device: bool) -> str | None:
    """Why a kernel does not take these arguments, whatever the device and the dtype. on_device: whether it reads
    coefficients there."""
    numbers, base = args.on_device(), args.base
    if numbers and not on_device:
        return "a coefficient is a tensor"
    like = base.dtype, base.device, 1
    if any([(n.dtype, n.device, n.numel()) != like or n.ndim > base.ndim for n in numbers]):
        return "a coefficient is a tensor of another dtype or device, or of more numbers than one"
    if native.layout_of(*args.tensors()) is None:
        return "the tensors do not share one dense memory layout"
    return _common_reason(args)


def _common_reason(args: SolverUpdateArgs) -> str | None:
    if len(args.terms) > MAX_TERMS:
        return f"it takes {MAX_TERMS} terms, not {len(args.terms)}"
    if torch.compiler.is_compiling():
        return "torch.compile fuses the plain formula itself"
    return None


def _native_reason(base: torch.Tensor) -> str | None:
    return None if base.dtype in native.DTYPES else f"it takes float32 or float64, not {base.dtype}"


def cpu_reason(args: SolverUpdateArgs) -> str | None:
    base = args.base
    if base.device.type != "cpu":
        return "it needs CPU tensors"
    for number in args.on_device():
        each = base.ndim > 0 and number.shape == (base.shape[0], *[1] * (base.ndim - 1))
        if number.dtype != base.dtype or number.device != base.device or not (each or number.numel() == 1):
            return "a coefficient is a tensor of another dtype or device, or of more numbers than one for each image"
    return native.cpu_reason() or _native_reason(base) or _common_reason(args)


def cpu_slower(args: SolverUpdateArgs) -> str | None:
    return _fused_reason(args, on_device=False)


def cuda_reason(args: SolverUpdateArgs) -> str | None:
    if args.base.device.type != "cuda":
        return "it needs CUDA tensors"
    return native.cuda_reason() or _native_reason(args.base) or _fused_reason(args, on_device=False)


def triton_reason(args: SolverUpdateArgs) -> str | None:
    # in this order, as on a CPU the first is soon done
    return _triton.reason(*args.tensors(), dtypes=_triton.DTYPES64) or _fused_reason(args, on_device=True)


def triton_slower(args: SolverUpdateArgs) -> str | None:
    return _triton.slower(args.base)


Result = tuple[torch.Tensor, torch.Tensor | None]


def _results(args: SolverUpdateArgs) -> Result:
    return torch.empty_like(args.base), torch.empty_like(args.base) if args.D is not None else None


def triton_forward(args: SolverUpdateArgs) -> Result:
    """One pass over memory; bit-identical to the reference, as each operation rounds on its own in the same order."""
    from edm_fast.kernels import solver_update as kernel  # late: a missing triton is a reason, not a crash

    base, x, D, noise, terms, weights, *_ = args
    y, d = _results(args)
    kernel.forward(y, d, base, x, D, noise, terms, weights, args.numbers())
    return y, d


def native_forward(args: SolverUpdateArgs) -> Result:
    """As on Triton, of coefficients that are numbers."""
    y, d = _results(args)
    layout = native.layout_of(args.base, y, *args.terms) or torch.contiguous_format
    name = f"solver_update_fwd_{y.device.type}"
    native.call(name, layout=layout, y=y, d=d, **args._asdict(), size=y.numel())
    return y, d


def cpu_forward(args: SolverUpdateArgs) -> Result:
    """Takes any layout, and coefficients that are tensors of one number, or of one for each image."""
    numbers = args.on_device()
    if native.layout_of(*args.tensors()) is None:
        args = _each_tensor(args, torch.Tensor.contiguous)
    elif not numbers:
        return native_forward(args)
    count = max([1, *(number.numel() for number in numbers)])
    parts = [native_forward(_image(args, i, count)) for i in range(count)]
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


cpu = Implementation("cpu", "cpu", cpu_forward, cpu_reason, cpu_slower)
cuda = Implementation("cuda", "cuda", native_forward, cuda_reason)
triton = Implementation("triton", "cuda", triton_forward, triton_reason, triton_slower)
_op = Op("solver_update", SolverUpdateArgs, reference, check, cuda, triton, cpu)


def solver_update(
    base: torch.Tensor,
    x: torch.Tensor | None = None,
    D: torch.Tensor | None = None,
    *,
    p: Scalar = 1.0,
    q: Scalar = 1.0,
    t: Scalar = 1.0,
    a: Scalar = 1.0,
    h: Scalar = 1.0,
    w: Scalar = 1.0,
    terms: Sequence[torch.Tensor] = (),
    weights: Sequence[Scalar] = (),
    noise: torch.Tensor | None = None,
    c: Scalar = 0.0,
) -> tuple[torch.Tensor, Any]:
    """Returns (y, d); d is None when no D is given. The slope is taken at x, the step starts from base."""
    return _op(SolverUpdateArgs(base, x, D, noise, terms, weights, p, q, t, a, h, w, c))
