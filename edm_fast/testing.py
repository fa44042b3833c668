"""What tests and benchmarks share beyond edm_fast.cases: poisoned memory, and the check of one function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from edm_fast.cases import LAYOUTS, Call, Case, cases, distances, expected, laid_out, outputs, widened

__all__ = ["LAYOUTS", "Call", "Case", "cases", "check", "gradients", "laid_out", "outputs", "poisoned", "widened"]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory from torch.empty is NaN inside the block, so that what a kernel leaves out shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switch: Any = torch.utils.deterministic
    fill = switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switch.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switch.fill_uninitialized_memory = fill


def check(function: Callable[..., Any], reference: Callable[..., Any], call: Call, factor: float = 2.0) -> None:
    """`function` keeps the error budget, writes all of its output, and gives the same bits twice."""
    with torch.no_grad(), poisoned():
        for found in distances(function(*call[0], **call[1]), *expected(reference, call), factor):
            assert found.ok, f"error {found.error:.3g} against float64, budget {found.budget:.3g}"
        first, second = (outputs(function(*call[0], **call[1])) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second)), "two runs differ"


def gradients(function: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Of the same arguments: the gradient of a fixed weighted sum of the outputs with respect to the first argument."""

    def run(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        x = args[0].detach().requires_grad_()
        with torch.enable_grad():
            results = outputs(function(x, *args[1:], **kwargs))
            weights = [torch.cos(torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y) for y in results]
            return torch.autograd.grad(results, x, weights)

    return run
