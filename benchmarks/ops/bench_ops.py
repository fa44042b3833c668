"""Every op at the layer shapes of its case table: each backend's speed relative to the reference, in one run.

`make bench` runs it and prints the ratios; extra_info of the JSON carries device, versions, threads and ratio. Forward
alone by the shared timer, the reference first; forward, and forward with backward, by turns in one process beside a
plain copy of the first argument, in CPU time when there is one thread (a busy machine hardly moves it).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

import edm_fast.ops
from edm_fast import backend, cases, native, testing, timing

ROUNDS = 15
TURN = 0.01  # seconds
DTYPES = {"solver_update": torch.float64}  # float32 elsewhere
REAL = [(op, case) for op in cases.CASES for case in cases.cases(op, real=True)]
IDS = [f"{op}-{case.name}" for op, case in REAL]

_reference: dict[tuple[str, str], tuple[float, float]] = {}  # median and best seconds of the reference


def _settings() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "isa": native.isa(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def medians(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each, taken by turns; with one thread in its CPU time, which a busy machine hardly moves."""
    clock = timing.thread_clock if torch.get_num_threads() == 1 else timing.wall_clock
    found = timing.by_turns(dict(enumerate(functions)), ROUNDS, TURN, clock)
    return [statistics.median(found[index]) for index in range(len(functions))]


@pytest.mark.parametrize(
    "op, case, name",
    [
        pytest.param(op, case, implementation.name, id=f"{op}-{case.name}-{implementation.name}")
        for op, case in REAL
        for implementation in backend.ops()[op].reference_first()
    ],
)
def bench_forward(benchmark: Any, op: str, case: testing.Case, name: str) -> None:
    """Skips a backend that cannot take the call, and says why."""
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", DTYPES.get(op, torch.float32)
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
        _reference[op, case.name] = median, best
    base_median, base_best = _reference.get((op, case.name), (float("nan"), float("nan")))
    ratios = {"ratio": base_median / median, "ratio_of_best": base_best / best}
    benchmark.extra_info.update(_settings(), op=op, case=case.name, backend=name, dtype=str(dtype), **ratios)
    print(
        f"{op:16s} {case.name:34s} {name:9s} median {median * 1e3:8.3f} ms, {ratios['ratio']:5.2f}x the reference's"
        f" speed; best {best * 1e3:8.3f} ms, {ratios['ratio_of_best']:5.2f}x"
    )


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op, case", REAL, ids=IDS)
def bench_forward_and_backward(benchmark: Any, op: str, case: testing.Case, layout: str) -> None:
    if not backend.ops()[op].implementations["cpu"].differentiable:
        pytest.skip("no backward")
    args, kwargs = case.inputs(torch.float32)
    args = tuple(testing.laid_out(a, layout) if torch.is_tensor(a) and a.ndim == 4 else a for a in args)
    leaves = [t.requires_grad_() for t in (args[0], *(a for a in args[1:] if torch.is_tensor(a) and a.ndim != 2))]
    copy, function = torch.empty_like(args[0]), getattr(edm_fast.ops, op)
    dy = torch.randn_like(function(*args, **kwargs))

    def forward(name: str) -> None:
        with torch.no_grad(), backend.use_backend(name):
            function(*args, **kwargs)

    def both(name: str) -> None:
        with backend.use_backend(name):
            y = function(*args, **kwargs)
        torch.autograd.grad(y, leaves, dy)

    plain, fused, floor = medians(
        lambda: forward("reference"), lambda: forward("cpu"), lambda: copy.copy_(args[0].detach())
    )
    plain_both, fused_both = medians(lambda: both("reference"), lambda: both("cpu"))
    ratios = {"forward": plain / fused, "both": plain_both / fused_both, "copies": fused / floor}
    benchmark.extra_info.update(_settings(), op=op, case=case.name, layout=layout, **ratios)
    benchmark.pedantic(lambda: both("cpu"), rounds=3)
    print(
        f"{op:16s} {case.name:26s} {layout:13s} forward {fused * 1e6:8.0f} us, {ratios['forward']:.2f}x the "
        f"reference's speed, {ratios['copies']:.1f} copies; with backward {fused_both * 1e6:8.0f} us, "
        f"{ratios['both']:.2f}x"
    )
