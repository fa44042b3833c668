"""edm-fast doctor: what is installed, what is missing and why, what each op will run on, and a short numeric test."""

from __future__ import annotations

import collections
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from typing import Any

import click
import torch

from edm_fast import backend, native
from edm_fast.cases import cases, laid_out
from edm_fast.errors import BROKEN, UserError, one_line
from edm_fast.evaluation.verify import small_calls, verify_ops
from edm_fast.networks import ARCHITECTURES, build
from edm_fast.plan._table import summary, tables

PACKAGES = (
    *("torch", "numpy", "scipy", "pillow", "safetensors", "click", "tqdm"),
    *("triton", "lmdb", "tensorboard", "matplotlib", "pytest-benchmark"),
)
NETWORKS = [
    *[("EDMPrecond", "ddpmpp"), ("VPPrecond", "ddpmpp"), ("VEPrecond", "ncsnpp")],
    *[("EDMPrecond", "adm"), ("iDDPMPrecond", "adm")],
]


def self_test() -> list[dict[str, Any]]:
    """One small call of each op on each backend that can run here, against float64."""
    return verify_ops(small_calls())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def native_part() -> dict[str, Any]:
    reason = native.cpu_reason()
    if reason is not None:
        found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        hint = f"there is one now ({found}): install again" if found else "there is none on PATH now"
        return {"available": False, "reason": f"{reason}; {hint}"}
    isas = list(filter(native.available, native.ISAS))
    threads = torch.get_num_threads()
    return {"available": True, "isa": native.isa(), "isas": isas, "threads": threads, "pool": native.thread_pool()}


def triton_part() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        return {"available": False, "reason": "triton is not installed (pip install 'edm-fast[gpu]')"}
    try:
        importlib.import_module("triton")
    except BROKEN as error:
        reason = f"triton does not load ({type(error).__name__}: {one_line(error)})"
        return {"available": False, "reason": reason, "version": _version("triton")}
    if not torch.cuda.is_available():
        return {"available": False, "reason": "no CUDA device", "version": _version("triton")}
    return {"available": True, "version": _version("triton")}


def cuda_part() -> dict[str, Any]:
    has_device = torch.cuda.is_available()
    reason = native.cuda_reason() or (None if has_device else "no CUDA device")
    part: dict[str, Any] = {"available": reason is None, "torch_cuda": torch.version.cuda}
    if has_device:
        part["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    elif torch.version.cuda is None:
        part["torch"] = "this torch is built without CUDA"
    return part if reason is None else {**part, "reason": reason}


def table_part() -> dict[str, dict[str, Any]]:
    """Of each table of measured kernels: how many entries, from when, which are dropped and why."""
    found = {}
    for table in tables():
        rows = table.rows.values()
        found[str(table.path)] = {
            "summary": summary(table),
            "entries": len(rows),
            "oldest": min((row.date for row in rows), default=None),
            "newest": max((row.date for row in rows), default=None),
            "wide_spreads": sum(row.wide() for row in rows),
            "dropped": {key: row.fault for key, row in table.rows.items() if row.fault},
        }
    return found


def choices() -> dict[str, dict[str, Any]]:
    """Per op: on how many layers of the published networks each backend runs, and why not on the others."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def empty(*shape: int, layout: str = "contiguous", scale: float = 1.0) -> torch.Tensor:
        return laid_out(torch.empty(shape, device=device), layout)

    table: dict[str, dict[str, Any]] = {}
    for name, op in backend.ops().items():
        layers: collections.Counter[str] = collections.Counter()
        reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for case in cases(name, real=True):
            args, kwargs = case.build(empty)
            try:
                choice = op.choose(op.arguments(*args, **kwargs))
            except UserError as error:
                reasons["requested"][str(error)] += 1
                continue
            layers[choice.backend] += 1
            for other, why in choice.reasons.items():
                reasons[other][why] += 1
        for other in sorted({*backend.NAMES} - {"auto", *op.implementations}):
            reasons[other]["this op has no such implementation"] = len(cases(name, real=True))
        best = layers.most_common(1)[0][0] if layers else None
        table[name] = {"backend": best, "device": device, "layers": dict(layers)}
        table[name]["reasons"] = {other: dict(found) for other, found in reasons.items()}
    return table


def families() -> dict[str, str | None]:
    """For a tiny network of each kind, why the backend that was asked for cannot run it, or None."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    found: dict[str, str | None] = {}
    for class_name, arch in NETWORKS:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            kwargs = {**ARCHITECTURES[arch], **size, "img_resolution": 8, "img_channels": 3}
            net = build(class_name, kwargs).eval().to(device)
            try:
                y = net(torch.ones(2, 3, 8, 8, device=device), net.round_sigma(torch.tensor([0.5, 2.0], device=device)))
                found[f"{class_name} {arch}"] = None if y.isfinite().all() else "its images are not finite"
            except UserError as error:
                found[f"{class_name} {arch}"] = str(error)
    return found


def report() -> dict[str, Any]:
    tests, table, networks = self_test(), choices(), families()
    return {
        "versions": {
            "edm-fast": _version("edm-fast"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{package: _version(package) for package in PACKAGES},
        },
        "requested_backend": os.environ.get("EDM_FAST_BACKEND"),
        "native": native_part(),
        "cuda": cuda_part(),
        "triton": triton_part(),
        "tables": table_part(),
        "ops": table,
        "networks": networks,
        "self_test": tests,
        "ok": all(row["ok"] for row in tests) and not any(networks.values()) and _all_run(table),
    }


def _all_run(table: dict[str, dict[str, Any]]) -> bool:
    return not any("requested" in row["reasons"] for row in table.values())


def _op_lines(name: str, row: dict[str, Any]) -> list[str]:
    """An op and, below it, why other backends were passed over on some or all layers of the published networks."""
    layers = sum(row["layers"].values()) + sum(row["reasons"].get("requested", {}).values())
    shares = sorted(row["layers"].items(), key=lambda item: -item[1])
    used = ", ".join(other if n == layers else f"{other} for {n} of {layers} layers" for other, n in shares)
    lines = [f"  {name:17s} {used or 'cannot run'} on {row['device']}"]
    for other, found in row["reasons"].items():
        for why, n in found.items():
            if other == "requested" or used:
                some = f" for {n} of {layers}" if n < layers else ""
                lines.append(f"  {'':17s}   " + (why if other == "requested" else f"not {other}{some}: {why}"))
    return lines


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"  {name:17s} {version or 'not installed'}" for name, version in found["versions"].items()]
    part = found["native"]
    if part["available"]:
        pool = part["pool"]
        lines.append(f"compiled part: yes, {part['isa']} code, {part['threads']} threads of {pool}")
    else:
        lines.append(f"compiled part: no: {part['reason']}")
    for name in ("cuda", "triton"):
        part = found[name]
        devices = ", ".join(part.get("devices", [])) or part.get("version", "")
        lines.append(f"{name}: " + (f"yes ({devices})" if part["available"] else f"no: {part['reason']}"))
    for path, part in found["tables"].items():
        lines.append(f"measured kernels: {path}")
        lines.append(f"  {part['summary']}")
        for fault, number in collections.Counter(part["dropped"].values()).items():
            first = next(key for key, other in part["dropped"].items() if other == fault)
            more = f" and {number - 1} more" if number > 1 else ""
            lines.append(f"  dropped: {first}{more}: {fault}")
    if found["requested_backend"]:
        lines.append(f"EDM_FAST_BACKEND={found['requested_backend']}")
    lines.append("ops:")
    for name, row in found["ops"].items():
        lines += _op_lines(name, row)
    lines.append("a tiny network of each kind:")
    for name, reason in found["networks"].items():
        lines.append(f"  {name:25s} {'runs' if reason is None else f'cannot run: {reason}'}")
    lines.append("self-test, largest error against float64:")
    for row in found["self_test"]:
        where = f"{row['op']:17s} {row['backend']:9s} {row['device']:4s} {row['dtype']}"
        verdict = "ok" if row["ok"] else "FAILED"
        lines.append(f"  {where}  {row['error']:.1e} of {row['budget']:.1e} allowed  {verdict}")
    return [*lines, "all is well" if found["ok"] else "something is wrong: see FAILED and 'cannot run' above"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(as_json: bool) -> None:
    """Say what is installed, what is missing and why, and test each backend's numbers. Exit code 1 if a test fails."""
    found = report()
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))
    if not found["ok"]:
        raise SystemExit(1)
