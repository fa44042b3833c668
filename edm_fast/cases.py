"""The case tables of all ops, and the error of a result: one table for tests, benchmarks, `verify` and `doctor`.

An op's own rows are in its reference.py. Those for "real" use are layer shapes of the published networks: `verify`
measures and benchmarks time them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

import edm_fast.ops  # noqa: F401  the table of ops is full
from edm_fast import backend
from edm_fast.ops._cases import LAYOUTS, Call, Case, laid_out

__all__ = ["CASES", "LARGE", "LAYOUTS", "SMALL", "Call", "Case", "Distance", "cases", "distances", "expected"]
__all__ += ["laid_out", "outputs", "ulp_distance", "widened"]

# of a 3x3 convolution of 256 channels by Winograd's F(4x4, 3x3) in float16: rms, in that of its result
WINOGRAD_ERROR = 2e-3
CASES: dict[str, list[Case]] = {name: [*op.cases()] for name, op in backend.ops().items()}
SMALL: dict[str, Case] = {name: next(c for c in rows if c.use == "small") for name, rows in CASES.items()}
LARGE: dict[str, list[Case]] = {name: [c for c in rows if c.use == "large"] for name, rows in CASES.items()}


def cases(op: str, real: bool | None = None) -> list[Case]:
    """The cases of an op: odd and real ones, the real ones alone (True), or the odd ones (False)."""
    uses = ("real", "odd") if real is None else ("real",) if real else ("odd",)
    return [case for case in CASES[op] if case.use in uses]


def widened(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The same call in float64, or another precision."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        items = [widened(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return {key: widened(item, dtype) for key, item in value.items()} if isinstance(value, dict) else value


def outputs(result: Any) -> list[torch.Tensor]:
    """The tensors of an op's result."""
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far one output lies from the reference."""

    error: float  # largest, against the reference in float64
    budget: float  # the largest error allowed
    size: float  # largest value
    ulp: float  # largest distance from the reference in the same dtype, in units in the last place
    identical: bool  # to the reference in the same dtype, bit for bit

    @property
    def ok(self) -> bool:
        return self.error <= self.budget  # false for nan, too


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The most numbers of their dtype that lie between two values in the same place; infinity if only one is nan."""
    if a.numel() == 0:
        return 0.0
    if not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    # the bits of a float without its sign count the numbers from zero
    m, n = (_bits(t.abs()).to(torch.int64) for t in (a, b))
    distance = torch.where(a.signbit() == b.signbit(), (m - n).abs().double(), m.double() + n.double())
    return distance.masked_fill(a.isnan(), 0).max().item()


def expected(reference: Callable[..., Any], call: Call) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The outputs of the reference: in the dtype of the inputs, and in float64."""
    args, kwargs = call
    plain = outputs(reference(*args, **kwargs))
    if all(t.dtype == torch.float64 for t in plain):
        return plain, plain
    return plain, outputs(reference(*widened(args), **widened(kwargs)))


def distances(result: Any, plain: list[torch.Tensor], exact: list[torch.Tensor], factor: float = 2.0) -> list[Distance]:
    """For each output that is not empty, how far `result` is from what `expected` gave.

    Budget: `factor` times the error of the reference in the dtype of the inputs, and a floor of four roundings of the
    largest value.
    """
    got = outputs(result)
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in plain], "shapes or dtypes differ"
    table = []
    for g, p, e in zip(got, plain, exact):
        if e.numel() == 0:
            continue
        size = e.abs().max().item()
        budget = factor * (p - e).abs().max().item() + 4 * torch.finfo(g.dtype).eps * size
        identical = torch.equal(_bits(g), _bits(p))
        table.append(Distance((g - e).abs().max().item(), budget, size, ulp_distance(g, p), identical))
    return table
