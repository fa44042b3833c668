"""Each op's backends at layers of the published networks, against the reference and against what the GPU can do.

Ceilings: a copy of 512 MB, and a bfloat16 product of 8192 x 8192 matrices. A row's `of_ceiling` is the time that its
bytes or its products would take at the ceilings, divided by the time it took.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import edm_fast.ops
from edm_fast import backend, cases, testing, timing
from edm_fast.evaluation import bench

ROUNDS = 7
TURN = 0.02  # seconds
REPEATS = 1000  # of a call whose bits must not change


class Layer(NamedTuple):
    op: str
    case: cases.Case
    dtype: torch.dtype


def layers(quick: bool) -> list[Layer]:
    """Those of `cases.LARGE` in half precision, the solver's in float64; for a trial the small ones in float32."""
    table = {op: [case] for op, case in cases.SMALL.items()} if quick else cases.LARGE
    half = torch.float32 if quick else torch.float16
    return [Layer(op, c, torch.float64 if op == "solver_update" else half) for op in table for c in table[op]]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str, quick: bool) -> dict[str, float]:
    """Bytes per second of a copy (read and written), operations per second of a matrix product."""
    size, side = (2**20, 256) if quick else (2**28, 8192)
    x = torch.ones(size, dtype=torch.bfloat16, device=device)
    y, m = torch.empty_like(x), torch.randn(side, side, device=device).bfloat16()
    calls = {"copy": lambda: y.copy_(x), "product": lambda: m @ m}
    times = timing.by_turns(calls, ROUNDS, TURN, timing.clock_of(device))
    copy, product = (statistics.median(times[name]) for name in calls)
    return {"copy_bytes_per_s": 2 * x.numel() * x.element_size() / copy, "bf16_flops_per_s": 2 * side**3 / product}


@torch.no_grad()
def flops(call: Callable[[], Any]) -> int:
    """Products and sums of convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _bytes(call: cases.Call, results: list[torch.Tensor]) -> int:
    """What must move: every tensor once."""
    tensors = {id(t): t for t in [*backend.tensors((*call[0], *call[1].values())), *results]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _peer(layer: Layer, call: cases.Call) -> dict[str, Callable[[], Any]]:
    """What torch has for the whole op, where it is not what the reference calls; and what is an experiment."""
    if layer.op == "conv2d" and call[1].keys() == {"bias"}:
        return {"triton, float8 products": _float8(*call[0], **call[1])}
    if layer.op != "attention":
        return {}
    qkv, heads = call[0]
    n, c, h, w = qkv.shape
    q, k, v = qkv.reshape(n, heads, c // heads // 3, 3, h * w).permute(3, 0, 1, 4, 2).contiguous().unbind(0)
    return {"scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(q, k, v)}


def _float8(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Callable[[], torch.Tensor]:
    """With the weight packed once, and x scaled and cast at each call."""
    packed: list[Any] = []

    def run() -> torch.Tensor:
        from edm_fast.kernels import _conv2d_float8 as float8

        if not packed:
            packed.append(float8.pack(weight))
        return float8.forward(x, packed[0], bias[None], padding=weight.shape[-1] // 2)

    return run


def _stable(function: Callable[[], Any], repeats: int) -> bool:
    first = [t.clone() for t in testing.outputs(function())]
    same = [torch.ones((), dtype=torch.bool, device=first[0].device)]
    for _ in range(repeats):
        same += [(a == b).all() for a, b in zip(first, testing.outputs(function()))]
        same = [torch.stack(same).all()]
    return bool(same[0])


def measure(layer: Layer, device: str, quick: bool, limits: dict[str, float]) -> list[dict[str, Any]]:
    """Forward alone, and forward with the gradient of the first argument, each backend by turns with the reference."""
    call = layer.case.inputs(layer.dtype, device)
    op, public, rounds = backend.ops()[layer.op], getattr(edm_fast.ops, layer.op), 2 if quick else ROUNDS
    with backend.use_backend("reference"):
        products = flops(lambda: public(*call[0], **call[1]))
    rows: list[dict[str, Any]] = []
    for kind in ("forward", "with backward"):
        ready: dict[str, Callable[[], Any]] = {}
        for name in (implementation.name for implementation in op.reference_first()):
            row = {"op": layer.op, "layer": layer.case.name, "dtype": str(layer.dtype), "kind": kind, "backend": name}

            def function(name: str = name, kind: str = kind) -> Any:
                with backend.use_backend(name):
                    if kind == "forward":
                        with torch.no_grad():
                            return public(*call[0], **call[1])
                    return testing.gradients(public)(*call[0], **call[1])

            try:
                if name == "triton" and device == "cpu":
                    raise backend.BackendError("Triton's interpreter is for tests")
                results = testing.outputs(function())
                wait(device)
            except Exception as error:
                reason = str(error) if isinstance(error, backend.BackendError) else bench.failure(error)
                rows.append({**row, "reason": reason})
                continue
            if name != "reference":
                row["bit_stable"] = _stable(function, 3 if quick else REPEATS if kind == "forward" else 20)
            if kind == "forward":
                moved = _bytes(call, results)
                seconds = max(moved / limits["copy_bytes_per_s"], products / limits["bf16_flops_per_s"])
                row |= {"bytes": moved, "flops": products, "floor_s": seconds}
            ready[name] = function
            rows.append(row)
        if kind == "forward":
            for name, function in _peer(layer, call).items():
                row = {**rows[-1], "backend": name, "bit_stable": None, "reason": None, "floor_s": None}
                try:
                    function()
                    wait(device)
                    ready[name] = function
                except Exception as error:
                    row["reason"] = bench.failure(error)
                rows.append(row)
        times = timing.by_turns(ready, rounds, TURN, timing.clock_of(device))
        for row in rows:
            if row["kind"] == kind and row["backend"] in times:
                row |= timing.compared(times[row["backend"]], times["reference"])
                if row.get("floor_s"):
                    row["of_ceiling"] = row["floor_s"] / row["median_s"]
    return rows
