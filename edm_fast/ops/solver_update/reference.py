"""The definition of solver_update: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from edm_fast.errors import UserError
from edm_fast.ops._cases import Call, Case, Make

Scalar = float | torch.Tensor
Result = tuple[torch.Tensor, torch.Tensor | None]


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


def reference(args: SolverUpdateArgs) -> Result:
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


def _solver(
    shape: tuple[int, ...], *, slope: bool = False, terms: int = 0, noise: bool = False, **rest: Any
) -> Callable:
    layout = rest.pop("layout", "contiguous")

    def build(make: Make) -> Call:
        def draw() -> torch.Tensor:
            return make(*shape, layout=layout)

        args = (draw(), draw(), draw()) if slope else (draw(),)
        kwargs = {"terms": [draw() for _ in range(terms)], "weights": [0.3 - 0.17 * k for k in range(terms)], **rest}
        return args, {**kwargs, "noise": draw()} if noise else kwargs

    return build


def cases() -> Iterator[Case]:
    big, odd = (64, 3, 32, 32), (3, 5, 7, 9)
    heun: dict[str, Any] = {"slope": True, "terms": 1, "t": 0.3, "h": -0.21, "w": 0.5}
    yield Case("euler", _solver(big, slope=True, t=0.37, h=-0.12), "real")
    yield Case("heun", _solver(big, **heun), "real")
    yield Case("churn", _solver(big, noise=True, c=0.71), "real")
    yield Case("multistep_6", _solver(big, terms=6, a=0.83, h=0.11), "real")
    yield Case("general_schedule", _solver(odd, slope=True, p=1.7, q=0.31, h=0.013))
    yield Case("factors_of_1", _solver(odd, slope=True, terms=2, noise=True, c=1.0))
    yield Case("everything", _solver(odd, slope=True, terms=6, noise=True, c=0.2, a=0.9, h=0.1, t=0.7, p=3.0, q=2.0))
    yield Case("terms_of_a_step", _solver(odd, terms=8, a=0.5))
    yield Case("copy", _solver(odd, a=2.5))
    yield Case("channels_last", _solver(odd, layout="channels_last", **heun))
    for shape in ((), (1,), (1023,), (4097,), (0, 3, 4, 4)):
        yield Case(f"shape_{shape}", _solver(shape, noise=True, c=0.3, **heun))
    yield Case("small", _solver((2, 32, 8, 8), slope=True, terms=1, t=2.5, h=-0.4), "small")
    yield Case("heun_64x3x32x32", _solver((64, 3, 32, 32), **heun), "large")
