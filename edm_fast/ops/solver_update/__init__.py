"""solver_update: the arithmetic of one solver stage, every kind of it, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edm_fast.backend import Op
from edm_fast.ops.solver_update.cpu import cpu
from edm_fast.ops.solver_update.cuda import cuda
from edm_fast.ops.solver_update.reference import Scalar, SolverUpdateArgs, cases, check, reference
from edm_fast.ops.solver_update.triton import triton

_op = Op("solver_update", SolverUpdateArgs, reference, check, cuda, triton, cpu, cases=cases)


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
    """Returns (y, d); d is None when no D is given. The slope is taken at x, the step starts from base.

        d = (p x - q D) / t                                            the slope, if D is given
        y = a base + h (sum_k weights_k terms_k + w d) + c noise       evaluated in this order

    With base = x and the defaults this is Euler on Karras et al. 2022, Eq. 1 (d = (x - D)/t, y = x + h d). Heun's
    second stage is terms = [d_0], weights = [1/2], w = 1/2 (Alg. 1, line 8); noise injection is a base + c noise
    (Alg. 2, line 6); Eq. 4 of the general schedule sets p = sigma'/sigma + s'/s and q = sigma' s/sigma with t = 1; a
    multistep solver has terms = [D_k]; preconditioning (Eq. 7) is a = c_skip, terms = [F], weights = [c_out].

    All tensors have one shape and dtype. Coefficients are Python floats (host scalars: no device sync) or tensors that
    broadcast, whose values nobody reads on the host. A factor of exactly 1 and an absent term cost nothing and round
    nothing.

    Tensors of other shapes or dtypes raise UserError. Each backend gives the bits of the reference.
    """
    return _op(SolverUpdateArgs(base, x, D, noise, terms, weights, p, q, t, a, h, w, c))
