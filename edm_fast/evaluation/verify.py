"""verify: how far each implementation is from float64, in ops at real layer shapes and in whole networks.

Errors are of one evaluation. The budget of an op is that of edm_fast.cases: twice the reference's own error and four
roundings of the largest value, or more where its backend has an own one. For a network ||y - y64|| / ||y64|| is held to
twice that of plain torch in the same precision, or to LIMITS where that is more; of fused ops, to the widest of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

import edm_fast.ops  # noqa: F401  (importing registers them)
from edm_fast import backend
from edm_fast.cases import SMALL, Case, Distance, cases, distances, expected, ulp_distance
from edm_fast.errors import UserError
from edm_fast.evaluation import _networks

SIGMAS = (0.01, 0.5, 80.0)
LIMITS = {"accelerated fp32": 1e-5, "accelerated bf16": 1e-2}  # small enough, however little plain torch errs
Row = dict[str, Any]


def op_rows(op: str, case: Case, dtype: torch.dtype, device: str) -> list[Row]:
    """One row for each backend that can take the call."""
    function, (given, named) = backend.ops()[op], case.inputs(dtype, device)
    args = function.arguments(*given, **named)
    rows: list[Row] = []
    with torch.no_grad():
        plain, exact = expected(function.reference, ((args,), {}))
        for implementation in function.reference_first():
            name = implementation.name
            if not _can_run(function, name, args):
                continue
            with backend.use_backend(name):
                found = distances(function(args), plain, exact, implementation.budget)
            where = {"op": op, "case": case.name, "backend": name, "device": device}
            rows.append({**where, "dtype": str(dtype).removeprefix("torch."), **_worst(found)})
    return rows


def _can_run(function: backend.Op, name: str, args: Any) -> bool:
    with torch.no_grad(), backend.use_backend(name):
        try:
            function.choose(args)
        except backend.BackendError:
            return False
    return True


def _worst(outputs: list[Distance]) -> Row:
    """The output nearest to, or furthest beyond, its budget; the largest ULP distance of any."""
    worst = max(outputs, key=lambda d: math.inf if math.isnan(d.error) else d.error / d.budget if d.budget else 0)
    return {
        "error": worst.error,
        "relative": worst.error / worst.size if worst.size else worst.error,
        "budget": worst.budget,
        "ulp": max(d.ulp for d in outputs),
        "identical": all(d.identical for d in outputs),
        "ok": all(d.ok for d in outputs),
    }


Calls = Iterable[tuple[str, Case, torch.dtype]]


def real_calls() -> Calls:
    """The layer shapes of the published networks in the dtypes they run in: samplers keep their state in float64."""
    for op in backend.ops():
        for dtype in (torch.float32, torch.float64) if op == "solver_update" else (torch.float32,):
            yield from ((op, case, dtype) for case in cases(op, real=True))


def small_calls() -> Calls:
    """One quick call of each op in each dtype."""
    yield from ((op, case, dtype) for op, case in SMALL.items() for dtype in (torch.float32, torch.float64))


def verify_ops(calls: Calls) -> list[Row]:
    """A row for each call, each device here, and each backend that can take it there."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [row for call in calls for device in devices for row in op_rows(*call, device)]


def summary(rows: Iterable[Row]) -> list[Row]:
    """One row per op, backend, device and dtype: the worst of its cases, and how many were bit-identical."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("op", "backend", "device", "dtype")), []).append(row)
    table = []
    for (op, name, device, dtype), found in groups.items():
        spent = [row["error"] / row["budget"] if row["budget"] else 0.0 for row in found]
        table.append(
            {
                **{"op": op, "backend": name, "device": device, "dtype": dtype, "cases": len(found)},
                "error": _largest(row["error"] for row in found),
                "relative": _largest(row["relative"] for row in found),
                "budget_spent": _largest(spent),
                "ulp": max(row["ulp"] for row in found),
                "identical": sum(row["identical"] for row in found),
                "ok": all(row["ok"] for row in found),
            }
        )
    return table


def _largest(values: Iterable[float]) -> float:
    """The largest; nan if one of them is."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values)


def ways(net: Any) -> Iterator[tuple[str, Callable[..., torch.Tensor] | str]]:
    """(name, function or the reason there is none) of each way to evaluate a network; plain torch comes first."""

    def on(name: str, net: Any = net) -> Callable[..., torch.Tensor]:
        def run(*args: Any) -> torch.Tensor:
            with backend.use_backend(name):
                return net(*args)

        return run

    yield "reference", on("reference")
    yield "fused ops", on("auto")
    yield "torch bf16", on("reference", _networks.half(net))
    for precision in _networks.PRECISIONS:
        try:
            yield f"accelerated {precision}", _networks.accelerated(net, precision)
        except UserError as error:
            yield f"accelerated {precision}", str(error)


@torch.no_grad()
def verify_network(name: str, net: Any, sigmas: Sequence[float] = SIGMAS, batch: int = 2) -> list[Row]:
    """A row per way and noise level, or one with a "reason" for a way that cannot run."""
    device = next(net.parameters()).device
    calls = {sigma: _networks.inputs(net, batch, sigma, device=device) for sigma in sigmas}
    exact = _networks.Exact(net)
    truth = {sigma: exact(*call) for sigma, call in calls.items()}
    del exact
    results: dict[tuple[str, float], torch.Tensor] = {}
    rows: list[Row] = []
    for way, run in ways(net):
        if isinstance(run, str):
            rows.append({"network": name, "way": way, "reason": run, "ok": True})
            continue
        for sigma, call in calls.items():
            y = run(*call)
            results[way, sigma] = y
            same = results["torch bf16" if way.endswith("bf16") else "reference", sigma]
            where = {"network": name, "way": way, "sigma": sigma, "batch": batch}
            factor = widest_budget(device) if way == "fused ops" else 2.0
            rows.append({**where, **_network_row(way, factor, y, results["reference", sigma], same, truth[sigma])})
    return rows


def widest_budget(device: torch.device) -> float:
    """The largest error of an op on the device that is within its budget, in that of the reference."""
    every = [implementation for op in backend.ops().values() for implementation in op.implementations.values()]
    return max(implementation.budget for implementation in every if implementation.device in ("any", device.type))


def _network_row(
    way: str, factor: float, y: torch.Tensor, plain: torch.Tensor, same: torch.Tensor, exact: torch.Tensor
) -> Row:
    """`plain` is the reference's result, `same` that of plain torch in the precision of `y`."""
    relative = _networks.relative_error([y], [exact])
    budget = factor * _networks.relative_error([same], [exact]) + 4 * torch.finfo(y.dtype).eps
    budget = max(budget, LIMITS.get(way, 0))
    found = distances(y, [plain], [exact])[0]
    return {
        "relative": relative,
        "largest": found.error / found.size,
        "budget": budget,
        "ulp": ulp_distance(y, plain),
        "identical": found.identical,
        "ok": relative <= budget,
    }
