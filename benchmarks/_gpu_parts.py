"""The parts of gpu_report.py that measure, each a process of its own: `python _gpu_parts.py PART --file=PART.json`.

Networks, sampling and training are those of `edm-fast bench`, one place (network and batch) after the other in the
order of PLACES, until the time is over: what is left is reported as cut. Run `gpu_report.py --resume` to go on.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _gpu_ops
import torch
from gpu_report import write

import edm_fast.ops
from edm_fast import backend, cases, testing
from edm_fast.evaluation import _networks, bench
from edm_fast.evaluation._report import read
from edm_fast.evaluation._targets import ADM, DDPMPP, NCSNPP

Place = tuple[str, int, tuple[str, ...]]  # network, batch, rows

PEERS = ("reference", "reference-tf32", "torch-half-fp16", "torch-half-bf16")
FUSED = ("fused", "fused-half-fp16", "fused-half-bf16")
OURS = ("accelerate-fp16", "accelerate-bf16", "accelerate-tf32", "accelerate-fp32")
BATCHES = {DDPMPP: (64, 1, 16, 256), NCSNPP: (64, 1, 16, 256), ADM: (64, 1, 16)}
FIRST = ((DDPMPP, 64), (DDPMPP, 1), (ADM, 64), (NCSNPP, 64))
COMPILED, TUNED = ("compile-fp16",), ("compile-max-autotune-fp16",)
TRAINED = ("reference", "reference-tf32", "autocast-bf16", "fused-autocast-bf16")
TRAINED_LATER = ("fused", "autocast-fp16", "fused-autocast-fp16")
SAMPLED = ("reference", "reference-tf32", "torch-half-fp16", *OURS[:1])
SAMPLED_LATER = ("accelerate-fp16-evaluations", *OURS[1:])
ROUNDS = {"networks": 5, "training": 5, "sampling": 2}


def _network_places() -> Iterator[Place]:
    others = [(name, batch) for name, batches in BATCHES.items() for batch in batches if (name, batch) not in FIRST]
    rows = (*PEERS, *OURS, *FUSED)
    yield from ((*place, rows) for place in FIRST)
    yield (*FIRST[0], COMPILED)  # on its own, as a compiler that runs out of time takes its step along
    yield from ((*place, rows) for place in others)
    yield (*FIRST[0], TUNED)
    yield from ((*place, COMPILED) for place in (*FIRST[1:], *others))
    yield from ((*place, TUNED) for place in (*FIRST[1:], *others))


PLACES: dict[str, list[Place]] = {
    "networks": list(_network_places()),
    "training": [(DDPMPP, 128, rows) for rows in (TRAINED, TRAINED_LATER, ("compile-autocast-bf16",))],
    "sampling": [(DDPMPP, batch, rows) for rows in (SAMPLED, SAMPLED_LATER) for batch in (64, 1)],
}
QUICK: dict[str, list[Place]] = {  # a trial on any machine
    "networks": [("demo", 1, ("reference", "reference-tf32", "fused-half-bf16", "accelerate-fp32", "accelerate-fp16"))],
    "training": [("demo", 2, ("reference", "reference-tf32", "fused-autocast-bf16"))],
    "sampling": [("demo", 1, ("reference", "accelerate-fp32"))],
}


def say(text: str) -> None:
    print(text, flush=True)


def places(target: str, args: argparse.Namespace) -> None:
    """bench of every place in order; after each one the part's file holds all that is known."""
    deadline = time.monotonic() + args.seconds
    folder = args.file.parent / "bench"
    if not args.file.exists():  # from the beginning
        for old in folder.glob(f"{target}-*.json"):
            old.unlink()
    todo = (QUICK if args.quick else PLACES)[target]
    found: dict[str, Any] = {"complete": False, "ok": False, "results": None, "errors": [], "cut": []}
    for index, (network, batch, rows) in enumerate(todo):
        found["cut"] = [[name, size, list(some)] for name, size, some in todo[index:]]
        found["summary"] = f"{index} of {len(todo)} steps"
        write(args.file, found)
        if time.monotonic() > deadline:
            break
        try:
            rounds = 1 if args.quick else ROUNDS[target]
            path = bench.bench(
                target,
                folder,
                say,
                [network],
                [batch],
                rows,
                rounds,
                True,
                command="make gpu-report",
                device=args.device,
            )
            found["results"] = read(path)
            found.setdefault("flops", {})
            if network not in found["flops"] and target != "training":
                found["flops"][network] = flops(network, args.device)
        except Exception as error:  # the reference itself: out of memory, say. The other places go on
            found["errors"].append(f"{network}, batch {batch}: {bench.failure(error)}")
            say(found["errors"][-1])
        if args.device == "cuda":
            torch.cuda.empty_cache()
    else:
        found["cut"] = []
    done = len(todo) - len(found["cut"])
    found |= {"complete": not found["cut"], "ok": not found["errors"], "summary": f"{done} of {len(todo)} steps"}
    write(args.file, found)


def flops(network: str, device: str) -> int:
    """Of one evaluation of one image."""
    net = _networks.open_network(network, device)
    with backend.use_backend("reference"):
        return _gpu_ops.flops(lambda: net(*_networks.inputs(net, 1, 0.5, device=device)))


def ops(args: argparse.Namespace) -> None:
    deadline = time.monotonic() + args.seconds
    found: dict[str, Any] = {"ceilings": _gpu_ops.ceilings(args.device, args.quick), "rows": [], "cut": []}
    everything = _gpu_ops.layers(args.quick)
    for index, layer in enumerate(everything):
        if time.monotonic() > deadline:
            found["cut"] = [later.case.name for later in everything[index:]]
            break
        found["rows"] += _gpu_ops.measure(layer, args.device, args.quick, found["ceilings"])
        found |= {"complete": False, "ok": False, "summary": f"{index + 1} of {len(everything)} layers"}
        write(args.file, found)
        say(f"{layer.op} {layer.case.name}")
    unstable = [row for row in found["rows"] if row.get("bit_stable") is False]
    found |= {"complete": not found["cut"], "ok": not unstable}
    found["summary"] += f", {len(unstable)} backends with other bits in repeated runs" if unstable else ""
    write(args.file, found)


def profile(args: argparse.Namespace) -> None:
    """The kernels that take the most time of an accelerated evaluation and of a fused training step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from edm_fast.evaluation._peers import subject
    from edm_fast.evaluation._rows import ROWS
    from edm_fast.evaluation._targets import TARGETS

    gpu = args.device == "cuda"
    activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU] if gpu else [ProfilerActivity.CPU]
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    network, batch = ("demo", 1) if args.quick else (DDPMPP, 64)
    jobs = {"networks": "accelerate-fp16" if gpu else "accelerate-fp32", "training": "fused-autocast-bf16"}
    found: dict[str, Any] = {"complete": False, "ok": True, "tables": {}}
    for target, row in jobs.items():
        try:
            with subject(_networks.open_network(network, args.device), batch) as job:
                call = TARGETS[target].prepare(ROWS[row], job)
                for _ in range(3):
                    call()
                with profiled(activities=activities) as trace:
                    call()
                    _gpu_ops.wait(args.device)
            events = sorted(trace.key_averages(), key=lambda event: -getattr(event, key))
            total = sum(getattr(event, key) for event in events)
            table = [
                [e.key[:110], e.count, getattr(e, key) / 1e3, getattr(e, key) / max(total, 1)] for e in events[:15]
            ]
            found["tables"][f"{target}, {row}, {network}, batch {batch}"] = table
        except Exception as error:
            found["tables"][f"{target}, {row}"] = bench.failure(error)
            found["ok"] = False
        found |= {"summary": f"{len(found['tables'])} of {len(jobs)} profiles"}
        write(args.file, found)
    write(args.file, {**found, "complete": True})


def native_calls(device: str) -> None:
    """Every native CUDA kernel on small cases, forward and gradient: what the sanitizer watches."""
    name, count = ("cuda" if device == "cuda" else "cpu"), 0
    for op in backend.ops():
        for case in (
            cases.SMALL[op],
            *(c for c in testing.cases(op, real=False) if "odd" in c.name or "7x9_p1" in c.name),
        ):
            for dtype in (torch.float32, torch.float64, torch.float16):
                args, kwargs = case.inputs(dtype, device)
                with backend.use_backend(name):
                    for differentiable in (False, True):
                        public = getattr(edm_fast.ops, op)
                        run = testing.gradients(public) if differentiable else public
                        try:
                            run(*args, **kwargs)
                            count += 1
                        except backend.BackendError:
                            pass  # not every op has every backend and dtype
    _gpu_ops.wait(device)
    print(f"{count} calls")
    sys.exit(0 if count else 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--native-calls", action="store_true")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # rows turn it on
    torch.backends.cudnn.benchmark = True  # the peers' best
    if args.native_calls:
        native_calls(args.device)
    parts: dict[str, Callable[[argparse.Namespace], None]] = {"ops": ops, "profile": profile}
    parts |= {target: functools.partial(places, target) for target in PLACES}
    parts[args.part](args)


if __name__ == "__main__":
    main()
