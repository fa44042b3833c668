"""What the tests of every op share: the backends that are here, and one test per backend, dtype and case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import edm_fast.ops  # noqa: F401
from edm_fast import backend, testing

# name -> device; without a GPU, Triton kernels run in Triton's interpreter (see conftest.py)
BACKENDS = {"cpu": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu", "cuda": "cuda"}


def backends(op: str, *, wanted: tuple[str, ...] = ("cpu", "cuda"), gradient: bool = False) -> list[Any]:
    """The candidates of an op whose device is here, as pytest parameters; those for a GPU are marked."""
    names = [n for n in backend.ops()[op].candidates if BACKENDS[n] == "cpu" or torch.cuda.is_available()]
    names = [n for n in names if n in wanted and (backend.ops()[op].candidates[n].differentiable or not gradient)]
    return [pytest.param(name, marks=pytest.mark.gpu if BACKENDS[name] == "cuda" else ()) for name in names]


def forced(op: str, name: str) -> Callable[..., Any]:
    """The op as a function that runs on one backend and nowhere else."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with backend.use_backend(name):
            return backend.ops()[op](*args, **kwargs)

    return run


def cases(op: str, **where: bool) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in testing.cases(op, **where)]


def forward(op: str, name: str, case: testing.Case, dtype: torch.dtype) -> None:
    found = backend.ops()[op]
    call, budget = case.inputs(dtype, BACKENDS[name]), found.candidates[name].budget
    testing.check(forced(op, name), found.reference, call, budget)


def gradient(op: str, name: str, case: testing.Case, dtype: torch.dtype) -> None:
    found = backend.ops()[op]
    function, reference = testing.gradients(forced(op, name)), testing.gradients(found.reference)
    testing.check(function, reference, case.inputs(dtype, BACKENDS[name]), found.candidates[name].budget)
