"""Each op's backends at layers of the published networks, against the reference and against what the GPU can do.

Ceilings: a copy of 512 MB, and a bfloat16 product of 8192 x 8192 matrices. A row's `of_ceiling` is the time that its
bytes or its products would take at the ceilings, divided by the time it took.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import edm_fast.ops
from edm_fast import backend, cases, testing
from edm_fast.evaluation import bench

ROUNDS = 7
TURN = 0.02  # seconds
REPEATS = 1000  # of a call whose bits must not change


class Layer(NamedTuple):
    op: str
    name: str
    build: Callable[[Callable[..., torch.Tensor]], cases.Call]
    dtype: torch.dtype
    flops: float = 0  # of the forward call, beside its bytes


def layers(quick: bool) -> list[Layer]:
    """Those of CIFAR-10 DDPM++ and NCSN++ at batch 64 and of ADM at batch 16, in half precision, channels last."""
    n, half, last = (2, torch.float32, "channels_last") if quick else (64, torch.float16, "channels_last")
    found = []

    def norm(c: int, size: int) -> None:
        def build(make: Callable[..., torch.Tensor]) -> cases.Call:
            return (make(n, c, size, size, layout=last), make(c), make(c), 32), {"eps": 1e-6}

        found.append(Layer("group_norm_silu", f"{n}x{c}x{size}x{size}", build, half))

    def attend(c: int, size: int, heads: int) -> None:
        def build(make: Callable[..., torch.Tensor]) -> cases.Call:
            return (make(n, 3 * heads * c, size, size, layout=last), heads), {}

        name = f"{n}x{heads}x{c}x{size * size}"
        found.append(Layer("attention", name, build, half, 4.0 * n * heads * c * size**4))

    def conv(c: int, out: int, size: int, k: int) -> None:
        def build(make: Callable[..., torch.Tensor]) -> cases.Call:
            weight = make(out, c, k, k, scale=1 / math.sqrt(c * k * k))
            return (make(n, c, size, size, layout=last), weight), {"bias": make(out)}

        name = f"{n}x{c}x{size}x{size} to {out}, {k}x{k}"
        found.append(Layer("conv2d", name, build, half, 2.0 * n * c * out * k * k * size * size))

    def resample(c: int, size: int, taps: list[int], **kwargs: int) -> None:
        def build(make: Callable[..., torch.Tensor]) -> cases.Call:
            f = torch.tensor(taps, dtype=torch.float64)
            kernel = (torch.outer(f, f) / f.sum() ** 2).to(make(1))
            return (make(n, c, size, size, layout=last), kernel), {**kwargs, "padding": len(taps) // 2 - 1}

        name = f"{n}x{c}x{size}x{size} {'up' if 'up' in kwargs else 'down'}, {len(taps)} taps"
        found.append(Layer("upfirdn", name, build, half))

    def heun(make: Callable[..., torch.Tensor]) -> cases.Call:
        x, D, d = (make(n, 3, 32, 32) for _ in range(3))
        return (x, x, D), {"t": 0.3, "h": -0.21, "w": 0.5, "terms": [d], "weights": [0.5]}

    found.append(Layer("solver_update", f"Heun {n}x3x32x32 fp64", heun, torch.float64))
    for c, size in ((64, 4),) if quick else ((128, 32), (256, 32), (256, 16), (512, 16), (256, 8)):
        norm(c, size)
    for c, size, heads in ((8, 4, 2),) if quick else ((256, 16, 1), (64, 32, 6), (64, 16, 9), (64, 8, 12)):
        attend(c, size, heads)
    for c, out, size, k in ((8, 8, 4, 3),) if quick else ((256, 256, 32, 3), (256, 256, 16, 3), (512, 256, 16, 1)):
        conv(c, out, size, k)
    c, size = (8, 8) if quick else (256, 32)
    for taps in ([1, 1], [1, 3, 3, 1]):
        resample(c, size, taps, down=2)
        resample(c, size // 2, taps, up=2)
    return found


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str, quick: bool) -> dict[str, float]:
    """Bytes per second of a copy (read and written), operations per second of a matrix product."""
    size, side = (2**20, 256) if quick else (2**28, 8192)
    x = torch.ones(size, dtype=torch.bfloat16, device=device)
    y, m = torch.empty_like(x), torch.randn(side, side, device=device).bfloat16()
    calls = {"copy": lambda: y.copy_(x), "product": lambda: m @ m}
    times = bench.by_turns(calls, ROUNDS, TURN, bench.clock(device))
    copy, product = (statistics.median(times[name]) for name in calls)
    return {"copy_bytes_per_s": 2 * x.numel() * x.element_size() / copy, "bf16_flops_per_s": 2 * side**3 / product}


def _bytes(call: cases.Call, results: list[torch.Tensor]) -> int:
    """What must move: every tensor once."""
    tensors = {id(t): t for t in [*backend.tensors((*call[0], *call[1].values())), *results]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _peer(layer: Layer, call: cases.Call) -> dict[str, Callable[[], Any]]:
    """What torch has for the whole op, where it is not what the reference calls; and what is an experiment."""
    if layer.op == "conv2d":
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
    call = cases.Case(layer.name, layer.build).inputs(layer.dtype, device)
    op, public, rounds = backend.ops()[layer.op], getattr(edm_fast.ops, layer.op), 2 if quick else ROUNDS
    rows: list[dict[str, Any]] = []
    for kind in ("forward", "with backward"):
        ready: dict[str, Callable[[], Any]] = {}
        for name in (implementation.name for implementation in op.reference_first()):
            row = {"op": layer.op, "layer": layer.name, "dtype": str(layer.dtype), "kind": kind, "backend": name}

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
                seconds = max(moved / limits["copy_bytes_per_s"], layer.flops / limits["bf16_flops_per_s"])
                row |= {"bytes": moved, "flops": layer.flops, "floor_s": seconds}
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
        times = bench.by_turns(ready, rounds, TURN, bench.clock(device))
        for row in rows:
            if row["kind"] == kind and row["backend"] in times:
                row |= bench.numbers(times[row["backend"]], times["reference"])
                if row.get("floor_s"):
                    row["of_ceiling"] = row["floor_s"] / row["median_s"]
    return rows
