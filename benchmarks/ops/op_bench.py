"""What the benchmarks of the ops share: the reference first, then each backend that can take the call, in one run.

`make bench` runs them and prints the ratios; extra_info of the JSON carries device, versions, threads and ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

import edm_fast.ops
from edm_fast import backend, native, testing, timing

ROUNDS = 15
TURN = 0.01  # seconds

_reference: dict[str, tuple[float, float]] = {}  # case -> median and best seconds of the reference in this run


def _settings() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "isa": native.isa(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def parameters(op: str) -> list[Any]:
    """(case, backend) with the reference before the others, case by case."""
    names = [implementation.name for implementation in backend.ops()[op].reference_first()]
    return [
        pytest.param(case, name, id=f"{case.name}-{name}") for case in testing.cases(op, real=True) for name in names
    ]


def medians(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each, taken by turns; with one thread in its CPU time, which a busy machine hardly moves."""
    clock = timing.thread_clock if torch.get_num_threads() == 1 else timing.wall_clock
    found = timing.by_turns(dict(enumerate(functions)), ROUNDS, TURN, clock)
    return [statistics.median(found[index]) for index in range(len(functions))]


def time_op(benchmark: Any, op: str, case: testing.Case, name: str, dtype: torch.dtype = torch.float32) -> None:
    """Time one forward call; skip a backend that cannot take it, and say why."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args, kwargs = case.inputs(dtype, device)
    function = getattr(edm_fast.ops, op)

    def call() -> None:
        function(*args, **kwargs)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad(), backend.use_backend(name):
        try:
            call()
        except backend.BackendError as error:
            pytest.skip(str(error))
        benchmark.group = f"{op} {case.name}"
        benchmark.pedantic(call, rounds=20, iterations=1, warmup_rounds=3)
    times = benchmark.stats.stats.data
    median, best = statistics.median(times), min(times)
    if name == "reference":
        _reference[case.name] = median, best
    base_median, base_best = _reference.get(case.name, (float("nan"), float("nan")))
    ratios = {"ratio": base_median / median, "ratio_of_best": base_best / best}
    benchmark.extra_info.update(_settings(), op=op, case=case.name, backend=name, dtype=str(dtype), **ratios)
    print(
        f"{op:16s} {case.name:34s} {name:9s} median {median * 1e3:8.3f} ms, {ratios['ratio']:5.2f}x the reference's"
        f" speed; best {best * 1e3:8.3f} ms, {ratios['ratio_of_best']:5.2f}x"
    )
