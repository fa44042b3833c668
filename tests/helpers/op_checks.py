"""What the tests of every op share: the backends that are here, and one test per backend, dtype and case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import edm_fast.ops
from edm_fast import backend, testing
from edm_fast import cases as case_tables

GPU = (
    "cuda" if torch.cuda.is_available() else "cpu"
)  # where Triton kernels run in Triton's interpreter (see conftest.py)
BACKENDS = {"cpu": "cpu", "triton": GPU, "cuda": GPU}  # name -> device


def runs(op: str, name: str) -> bool:
    """Whether an implementation for GPUs takes a small call here."""
    args, kwargs = case_tables.SMALL[op].inputs(torch.float32, BACKENDS[name])
    reason = backend.ops()[op].implementations[name].reason
    return reason is None or reason(backend.ops()[op].arguments(*args, **kwargs)) is None


def backends(op: str, *, wanted: tuple[str, ...] = ("cpu", "cuda"), gradient: bool = False) -> list[Any]:
    """The implementations of an op whose device is here, as pytest parameters; those for a GPU are marked."""
    implementations = backend.ops()[op].implementations
    names = [n for n in implementations if n in wanted and (n == "cpu" or runs(op, n))]
    names = [n for n in names if implementations[n].differentiable or not gradient]
    return [pytest.param(name, marks=pytest.mark.gpu if BACKENDS[name] == "cuda" else ()) for name in names]


def forced(op: str, name: str) -> Callable[..., Any]:
    """The op as a function that runs on one backend and nowhere else."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with backend.use_backend(name):
            return getattr(edm_fast.ops, op)(*args, **kwargs)

    return run


def choose(op: str, *args: Any, **kwargs: Any) -> backend.Choice:
    """The backend a call would run on, and why on no other."""
    found = backend.ops()[op]
    return found.choose(found.arguments(*args, **kwargs))


def cases(op: str, **where: bool) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in testing.cases(op, **where)]


def forward(op: str, name: str, case: testing.Case, dtype: torch.dtype) -> None:
    call, budget = case.inputs(dtype, BACKENDS[name]), backend.ops()[op].implementations[name].budget
    testing.check(forced(op, name), forced(op, "reference"), call, budget)


def gradient(op: str, name: str, case: testing.Case, dtype: torch.dtype) -> None:
    call, budget = case.inputs(dtype, BACKENDS[name]), backend.ops()[op].implementations[name].budget
    testing.check(gradients(op, forced(op, name)), gradients(op, forced(op, "reference")), call, budget)


def gradients(op: str, function: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Of the same arguments: y, and the gradients of a fixed weighted sum of it with respect to every tensor but
    filters, which have none."""

    def run(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        names = [*backend.ops()[op].arguments._fields[: len(args)], *kwargs]
        fresh = [
            value.detach().requires_grad_() if torch.is_tensor(value) and name != "f" else value
            for name, value in zip(names, (*args, *kwargs.values()))
        ]
        with torch.enable_grad():
            y = function(*fresh[: len(args)], **dict(zip(kwargs, fresh[len(args) :])))
            weights = torch.cos(torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y)
            leaves = [value for value in fresh if torch.is_tensor(value) and value.requires_grad]
            return y.detach(), *torch.autograd.grad(y, leaves, weights)

    return run
