"""The parts of gpu_report.py that measure, each a process of its own: `python _gpu_parts.py PART`, told what is done.

Every row is told as an event when it is there (`_gpu_process`), and nothing is written. Networks, sampling and training
are rows of `edm-fast bench`, each by turns with the reference alone, in the order of _gpu_places.PLACES.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import _gpu_ops
import _gpu_sweep
import torch
from _gpu_places import DDPMPP, PLACES, QUICK, ROUNDS, SWEPT, seconds_allowed
from _gpu_process import tell

from edm_fast import backend, cases
from edm_fast import ops as functions
from edm_fast.evaluation import _machine, _networks, _peers, bench
from edm_fast.evaluation._rows import ROWS
from edm_fast.evaluation._targets import TARGETS
from edm_fast.plan import GpuPlanner, _table

Earlier = dict[str, Any]  # what an earlier process of this part did: "done", ids of rows, and "facts"
RACED = ((8, 64, 8, 128), (2, 128, 32, 256))  # layers: images, channels, rows and columns, outputs


@contextlib.contextmanager
def watched(what: str, seconds: float, left: list[str]) -> Iterator[None]:
    """Time for one row. When it is over, the process shows where it hangs, and ends."""
    tell(begin=what, limit=seconds + 5, left=left)
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@functools.lru_cache(maxsize=1)
def opened(network: str, device: str) -> Any:
    return _networks.open_network(network, device)


def id_of(network: str, batch: int, row: str) -> str:
    return f"{network}, batch {batch}, {row}"


def places(part: str, args: argparse.Namespace, earlier: Earlier) -> None:
    """The rows of every place in order."""
    todo = (QUICK if args.quick else PLACES)[part]
    target = "networks" if part == "autotune" else part
    wanted = [(place, row) for place in todo for row in place.rows]
    left = dict.fromkeys(id_of(*place[:2], row) for place, row in wanted)
    left = {name: None for name in left if name not in earlier["done"]}
    for place in todo:
        missing = [row for row in place.rows if id_of(*place[:2], row) in left]
        if not missing:
            continue
        network, batch = place.network, place.batch
        with watched(id_of(network, batch, missing[0]), 60, [*left]):
            net = opened(network, args.device)
            if network not in earlier["facts"].get("flops", {}) and target != "training":
                earlier["facts"].setdefault("flops", {})[network] = flops(net, args.device)
                tell(facts={"flops": earlier["facts"]["flops"]})
        with _peers.subject(net, batch) as subject:
            reference = None
            for row in missing:
                name = id_of(network, batch, row)
                with watched(name, seconds_allowed(row), [*left]):
                    try:
                        if reference is None:
                            reference = bench.first_call(target, network, subject, "reference", [])
                        entry = row_of(target, subject, row, reference, 1 if args.quick else ROUNDS[part])
                    except Exception as error:  # of the reference: out of memory, say. The other places go on
                        entry = {"network": network, "batch": batch, "row": row, "reason": bench.failure(error)}
                    del left[name]
                    tell(row={**entry, "id": name, "date": bench.now()}, left=[*left])
                    tell_dropped()
                next_row(args.device)


_told: set[str] = set()


def tell_dropped() -> None:
    """The candidates that plans of this process had to do without."""
    for table in _table._tables.values():
        for key, row in table.rows.items():
            if row.fault and key not in _told:
                _told.add(key)
                tell(candidate=key[:160], fault=row.fault)


def next_row(device: str) -> None:
    """Memory for it. A GPU that has stopped does nothing more in this process: another one goes on."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            print(bench.failure(error), flush=True)
            os._exit(3)


def row_of(target: str, subject: Any, row: str, reference: Any, rounds: int) -> dict[str, Any]:
    """The entry of a row, by turns with the reference."""
    own, call, truth = reference
    entries, calls = {"reference": dict(own)}, {"reference": call}
    if row != "reference":
        entries[row], found, _ = bench.first_call(target, own["network"], subject, row, truth)
        if found is None:
            return entries[row]
        calls[row] = found
    bench.add_times(entries, calls, subject.batch, rounds, subject.device.type)
    return entries[row]


def flops(net: Any, device: str) -> int:
    """Of one evaluation of one image."""
    with backend.use_backend("reference"):
        return _gpu_ops.flops(lambda: net(*_networks.inputs(net, 1, 0.5, device=device)))


def ops(args: argparse.Namespace, earlier: Earlier) -> None:
    known, everything = earlier["facts"], _gpu_ops.layers(args.quick)
    names = [f"{layer.op}, {layer.case.name}" for layer in everything]
    if "ceilings" not in known:
        with watched("ceilings", 60, names):
            known["ceilings"] = _gpu_ops.ceilings(args.device, args.quick)
            tell(facts={"ceilings": known["ceilings"]})
    begun = {name.rpartition(", ")[0] for name in earlier["done"]} | {*earlier["done"]}
    for index, (name, layer) in enumerate(zip(names, everything, strict=True)):
        if name in begun:
            continue
        with watched(name, 60, names[index:]):
            rows = _gpu_ops.measure(layer, args.device, args.quick, known["ceilings"])
            for row in rows:
                tell(row={**row, "id": f"{name}, {row['kind']} {row['backend']}"}, left=names[index + 1 :])
        next_row(args.device)


def profile(args: argparse.Namespace, earlier: Earlier) -> None:
    """The kernels that take the most time: of an accelerated evaluation, of a compiled one, of a training step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    gpu = args.device == "cuda"
    activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU] if gpu else [ProfilerActivity.CPU]
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    network, batch = ("demo", 1) if args.quick else (DDPMPP, 64)
    jobs = [("networks", "accelerate-fp16" if gpu else "accelerate-fp32"), ("training", "fused-autocast-bf16")]
    jobs += [("networks", "compile-fp16")] if gpu else []
    names = [f"{target}, {row}, {network}, batch {batch}" for target, row in jobs]
    for index, (name, (target, row)) in enumerate(zip(names, jobs, strict=True)):
        if name in earlier["done"]:
            continue
        with watched(name, seconds_allowed(row), names[index:]):
            found: dict[str, Any] = {"id": name}
            try:
                with _peers.subject(opened(network, args.device), batch) as job:
                    call = TARGETS[target].prepare(ROWS[row], job)
                    for _ in range(3):
                        call()
                    with profiled(activities=activities) as trace:
                        call()
                        _gpu_ops.wait(args.device)
                events = [event for event in trace.key_averages() if getattr(event, key) > 0]
                if gpu:  # the calls that launched kernels have their time, too
                    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
                events.sort(key=lambda event: -getattr(event, key))
                total = sum(getattr(event, key) for event in events)
                found["total_ms"] = total / 1e3
                found["table"] = [
                    [e.key[:160], e.count, getattr(e, key) / 1e3, getattr(e, key) / total] for e in events[:40]
                ]
            except Exception as error:
                found["reason"] = bench.failure(error)
            tell(row=found, left=names[index + 1 :])


def counters(args: argparse.Namespace, earlier: Earlier) -> None:
    """A few launches of three kernels, for a profiler of hardware counters around this process."""
    for op in ("conv2d", "group_norm_silu", "attention"):
        call, keywords = cases.LARGE[op][0].inputs(torch.float16, args.device)
        with backend.use_backend("triton"), torch.no_grad():
            getattr(functions, op)(*call, **keywords)
    _gpu_ops.wait(args.device)


def races(args: argparse.Namespace, earlier: Earlier) -> None:
    """The convolution in Gluon on small layers, for Triton's concurrency sanitizer: a race ends this process."""
    import triton

    from edm_fast.kernels import _conv2d_gluon, conv2d

    tell(facts={"chip": chip_of(args.device)})
    _conv2d_gluon.SLOTS = 4  # with all of them the sanitizer's code takes minutes to compile
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=args.device))
    for n, c, size, outputs in RACED:
        x = torch.randn(n, c, size, size, dtype=torch.float16, device=args.device)
        weight = torch.randn(outputs, c, 3, 3, dtype=torch.float16, device=args.device)
        if why := _conv2d_gluon.reason(x, weight, 1):
            return tell(not_run=why)
        y = _conv2d_gluon.forward(x, conv2d.pack(weight), padding=1)
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding=1), rtol=1e-2, atol=0.1)
    _gpu_ops.wait(args.device)


def _swept(quick: bool) -> list[_gpu_sweep.Layer]:
    if quick:
        return [_gpu_sweep.Layer(1, 16, 4, 4, 16, 3)]
    return [layer for place in SWEPT for layer in _gpu_sweep.layers(*place)]


def chip_of(device: str) -> str:
    from edm_fast.kernels import _conv2d_tuned

    return _conv2d_tuned.chip(torch.cuda.get_device_name(device) if device == "cuda" else "cpu")


def sweep(args: argparse.Namespace, earlier: Earlier) -> None:
    """Layer by layer. A way that has to be proved may wait for ever, which ends this process: the next one does
    without that way, and begins with the same layer."""
    from edm_fast.kernels import _conv2d_tuned

    known, device = earlier["facts"], torch.device(args.device)
    if "ceilings" not in known:
        known["ceilings"] = _gpu_ops.ceilings(args.device, args.quick)
        tell(facts={"ceilings": known["ceilings"], "chip": chip_of(args.device)})
    tuned = known.setdefault("tuned", {})
    layers = {layer.name(): layer for layer in _swept(args.quick)}
    left = [name for name in layers if name not in earlier["done"] or name == known.get("again")]

    def told(way: str, works: bool) -> None:
        tuned[way] = [int(works)]
        tell(facts={"tuned": tuned, "again": "" if works else left[0]})

    tell(facts={"again": ""})
    while left:
        name = left[0]
        with watched(name, 60, left):
            tried = [way for way in _conv2d_tuned.PROVED if tuned.get(way) != [0]]
            most = known["ceilings"]["bf16_flops_per_s"]
            found = _gpu_sweep.measure(layers[name], device, args.quick, most, tried, told)
            tuned |= found.pop("tuned", {})
            for plan, fault in found.pop("faults").items():
                tell(candidate=f"{name}, {plan}", fault=fault)
            del left[0]
            tell(row={**found, "id": name}, facts={"tuned": tuned, "again": ""}, left=left)
        next_row(args.device)


def warm_sweep(args: argparse.Namespace, share: int, processes: int) -> None:
    """Run this share of the kernels of the sweep once, each specialisation for one of its layers."""
    from edm_fast.kernels import conv2d

    kernels = {}
    for layer in _swept(args.quick):
        for plan in _gpu_sweep.blocks(layer, args.quick):
            whole = layer.c % plan.k == 0, layer.h * layer.w % plan.m == 0, layer.c % 16 == 0, layer.outputs % 16 == 0
            kernels.setdefault((layer.kernel, whole, plan.m, plan.n, plan.k, plan.warps, plan.stages), (layer, plan))
    for layer, plan in [*kernels.values()][share::processes]:
        n, c, h, w, outputs, kernel, _ = layer
        x, weight, residual = (
            torch.zeros(shape, dtype=torch.float16, device=args.device)
            for shape in [(n, c, h, w), (outputs, c, kernel, kernel), (n, outputs, h, w)]
        )
        try:
            bias = x.new_zeros(1, outputs)
            conv2d.forward(x, conv2d.pack(weight), bias, residual, 0.5, kernel // 2, plan=plan)
        except Exception as error:
            tell(candidate=str(plan), fault=bench.failure(error))


def untimed(key: str, calls: Any) -> dict[str, float]:
    """In place of a clock: each candidate but torch's runs once, and later ones count as faster."""
    found = {}
    for place, (name, call) in enumerate(calls.items()):
        try:
            if place:
                call()
            found[name] = 1.0 - 0.001 * place
        except Exception as error:
            if (fault := f"{name} {bench.failure(error)}") not in _told:
                _told.add(fault)
                tell(candidate=f"{name} {key}"[:160], fault=bench.failure(error))
    return found


def warm(args: argparse.Namespace) -> None:
    """Build one plan with every candidate run once and none of them timed; or compile the network by torch."""
    network, batch, row = args.job[0], int(args.job[1]), args.job[2]
    os.nice(10)  # the build beside it comes first
    if network == "sweep":
        return warm_sweep(args, batch, int(row))
    with _peers.subject(_networks.open_network(network, args.device), batch) as subject, torch.no_grad():
        if row.startswith("accelerate") and args.device == "cuda":
            net = _networks.accelerated(subject.net, row.removeprefix("accelerate-"))
            planner: Any = net.model.planner
            assert isinstance(planner, GpuPlanner)
            planner.measure, planner.captured = untimed, False
            net(*subject.example)
        else:
            TARGETS["networks"].prepare(ROWS[row], subject)()
        _gpu_ops.wait(args.device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--job", nargs=3)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # rows turn it on
    torch.backends.cudnn.benchmark = args.part != "warm"  # the peers' best
    if args.part == "warm":
        return warm(args)
    earlier: Earlier = {"done": [], "facts": {}, **json.loads(sys.stdin.read() or "{}")}
    settings = {**_machine.settings(torch.device(args.device)), "triton": triton_version()}
    tell(facts={"settings": settings, "slug": _machine.slug(settings)})
    parts: dict[str, Callable[..., None]] = {"ops": ops, "profile": profile, "sweep": sweep}
    parts |= {"counters": counters, "races": races}
    parts |= {part: functools.partial(places, part) for part in PLACES}
    parts[args.part](args, earlier)
    print(f"{args.part}: done at {time.strftime('%H:%M:%S')}")


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


if __name__ == "__main__":
    main()
