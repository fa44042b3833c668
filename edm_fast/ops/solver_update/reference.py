"""The definition of solver_update: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from edm_fast.errors import UserError

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
