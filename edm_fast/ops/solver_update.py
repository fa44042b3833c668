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

import functools
from collections.abc import Sequence
from typing import Any

import torch

from edm_fast import native
from edm_fast.backend import Candidate, Op
from edm_fast.errors import UserError
from edm_fast.ops import _triton

Scalar = float | torch.Tensor


def _times(c: Scalar, x: torch.Tensor) -> torch.Tensor:
    return x if isinstance(c, (int, float)) and c == 1 else c * x


def reference(
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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns (y, d); d is None when no D is given. The slope is taken at x, the step starts from base."""
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


def check(
    base: torch.Tensor,
    x: torch.Tensor | None = None,
    D: torch.Tensor | None = None,
    *,
    terms: Sequence[torch.Tensor] = (),
    weights: Sequence[Scalar] = (),
    noise: torch.Tensor | None = None,
    **coefficients: Scalar,
) -> None:
    op = "solver_update"
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


def _tensors_among(weights: Sequence[Scalar], coefficients: dict[str, Scalar]) -> list[torch.Tensor]:
    return [number for number in (*weights, *coefficients.values()) if isinstance(number, torch.Tensor)]


def _fused_reason(
    on_device: bool,
    base: torch.Tensor,
    x: torch.Tensor | None = None,
    D: torch.Tensor | None = None,
    *,
    terms: Sequence[torch.Tensor] = (),
    weights: Sequence[Scalar] = (),
    noise: torch.Tensor | None = None,
    **coefficients: Scalar,
) -> str | None:
    """Why a kernel does not take these arguments, whatever the device and the dtype. on_device: whether it reads
    coefficients there."""
    numbers = _tensors_among(weights, coefficients)
    if numbers and not on_device:
        return "a coefficient is a tensor"
    like = base.dtype, base.device, 1
    if any([(n.dtype, n.device, n.numel()) != like or n.ndim > base.ndim for n in numbers]):
        return "a coefficient is a tensor of another dtype or device, or of more numbers than one"
    tensors = [tensor for tensor in (base, x, D, noise, *terms) if tensor is not None]
    if native.layout_of(*tensors) is None:
        return "the tensors do not share one dense memory layout"
    return _common_reason(terms)


def _common_reason(terms: Sequence[torch.Tensor]) -> str | None:
    if len(terms) > MAX_TERMS:
        return f"it takes {MAX_TERMS} terms, not {len(terms)}"
    if torch.compiler.is_compiling():
        return "torch.compile fuses the plain formula itself"
    return None


def _native_reason(base: torch.Tensor) -> str | None:
    return None if base.dtype in native.DTYPES else f"it takes float32 or float64, not {base.dtype}"


def cpu_reason(
    base: torch.Tensor,
    x: torch.Tensor | None = None,
    D: torch.Tensor | None = None,
    *,
    terms: Sequence[torch.Tensor] = (),
    weights: Sequence[Scalar] = (),
    noise: torch.Tensor | None = None,
    **coefficients: Scalar,
) -> str | None:
    if base.device.type != "cpu":
        return "it needs CPU tensors"
    for number in _tensors_among(weights, coefficients):
        each = base.ndim > 0 and number.shape == (base.shape[0], *[1] * (base.ndim - 1))
        if number.dtype != base.dtype or number.device != base.device or not (each or number.numel() == 1):
            return "a coefficient is a tensor of another dtype or device, or of more numbers than one for each image"
    return native.cpu_reason() or _native_reason(base) or _common_reason(terms)


def cpu_slower(base: torch.Tensor, *args: Any, **kwargs: Any) -> str | None:
    return _fused_reason(False, base, *args, **kwargs)


def cuda_reason(base: torch.Tensor, *args: Any, **kwargs: Any) -> str | None:
    if base.device.type != "cuda":
        return "it needs CUDA tensors"
    return native.cuda_reason() or _native_reason(base) or _fused_reason(False, base, *args, **kwargs)


def triton_reason(base: torch.Tensor, *args: Any, **kwargs: Any) -> str | None:
    tensors = [base, *args, *(kwargs.get(name) for name in ("x", "D", "noise")), *kwargs.get("terms", ())]
    # in this order, as on a CPU the first is soon done
    return _triton.reason(*tensors, dtypes=_triton.DTYPES64) or _fused_reason(True, base, *args, **kwargs)


def triton_slower(base: torch.Tensor, *args: Any, **kwargs: Any) -> str | None:
    return _triton.slower(base)


def _fused(
    backend: str,
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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One pass over memory; bit-identical to the reference, as each operation rounds on its own in the same order."""
    y = torch.empty_like(base)
    d = torch.empty_like(base) if D is not None else None
    if backend == "triton":
        from edm_fast.kernels import solver_update as kernel  # late: a missing triton is a reason, not a crash

        kernel.forward(y, d, base, x, D, noise, terms, weights, (p, q, t, a, h, w, c))
        return y, d
    layout = native.layout_of(base, y, *terms) or torch.contiguous_format
    native.call(
        f"solver_update_fwd_{base.device.type}",
        layout=layout,
        y=y,
        d=d,
        base=base,
        x=x,
        D=D,
        noise=noise,
        terms=terms,
        weights=weights,
        p=p,
        q=q,
        t=t,
        a=a,
        h=h,
        w=w,
        c=c,
        size=base.numel(),
    )
    return y, d


def cpu_forward(
    base: torch.Tensor,
    x: torch.Tensor | None = None,
    D: torch.Tensor | None = None,
    *,
    terms: Sequence[torch.Tensor] = (),
    weights: Sequence[Scalar] = (),
    noise: torch.Tensor | None = None,
    **coefficients: Scalar,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Takes any layout, and coefficients that are tensors of one number, or of one for each image."""
    tensors: list[Any] = [base, x, D, noise, *terms]
    given = _tensors_among(weights, coefficients)
    if native.layout_of(*[t for t in tensors if t is not None]) is None:
        tensors = [t if t is None else t.contiguous() for t in tensors]
    elif not given:
        return _fused("native", base, x, D, terms=terms, weights=weights, noise=noise, **coefficients)
    n = max([1, *(number.numel() for number in given)])
    parts = []
    for i in range(n):
        rows = tensors if n == 1 else [t if t is None else t[i : i + 1] for t in tensors]
        numbers: dict[str, Any] = {name: _number(value, i) for name, value in coefficients.items()}
        numbers |= {"terms": rows[4:], "weights": [_number(weight, i) for weight in weights], "noise": rows[3]}
        parts.append(_fused("native", *rows[:3], **numbers))
    if n == 1:
        return parts[0]
    return torch.cat([y for y, _ in parts]), None if D is None else torch.cat([d for _, d in parts if d is not None])


def _number(value: Scalar, image: int) -> float:
    return value.reshape(-1)[min(image, value.numel() - 1)].item() if isinstance(value, torch.Tensor) else value


native_forward = functools.partial(_fused, "native")
triton_forward = functools.partial(_fused, "triton")
solver_update = Op(
    "solver_update",
    reference,
    check,
    cuda=Candidate(native_forward, cuda_reason),
    triton=Candidate(triton_forward, triton_reason, slower=triton_slower),
    cpu=Candidate(cpu_forward, cpu_reason, slower=cpu_slower),
)
