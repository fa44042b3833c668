"""edm-fast doctor: what is installed, what is missing and why, what each op will run on, and a short numeric test."""

from __future__ import annotations

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
from edm_fast.cases import SMALL
from edm_fast.evaluation.verify import small_calls, verify_ops

PACKAGES = (
    *("torch", "numpy", "scipy", "pillow", "safetensors", "click", "tqdm"),
    *("triton", "lmdb", "tensorboard", "matplotlib", "pytest-benchmark"),
)


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
    isas = native.ISAS[: native.lib.BEST_ISA + 1]
    threads = torch.get_num_threads()
    return {"available": True, "isa": native.isa(), "isas": isas, "threads": threads, "pool": native.thread_pool()}


def triton_part() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        return {"available": False, "reason": "triton is not installed (pip install 'edm-fast[gpu]')"}
    if not torch.cuda.is_available():
        return {"available": False, "reason": "no CUDA device", "version": _version("triton")}
    return {"available": True, "version": _version("triton")}


def cuda_part() -> dict[str, Any]:
    here = torch.cuda.is_available()
    reason = native.cuda_reason()
    part: dict[str, Any] = {"available": reason is None, "torch_cuda": torch.version.cuda}
    if here:
        part["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    elif torch.version.cuda is None:
        part["torch"] = "this torch is built without CUDA"
    return part if reason is None else {**part, "reason": reason}


def choices() -> dict[str, dict[str, Any]]:
    """Per op: the backend of a small call, and why not the others."""
    table: dict[str, dict[str, Any]] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, case in SMALL.items():
        op = backend.ops()[name]
        args, kwargs = case.inputs(torch.float32, device)
        try:
            choice = op.choose(*args, **kwargs)
            missing = set(backend.NAMES) - {"auto", "reference", *op.candidates}
            reasons = {**choice.reasons, **dict.fromkeys(sorted(missing), "this op has no such implementation")}
            table[name] = {"backend": choice.backend, "device": device, "reasons": reasons}
        except backend.UserError as error:
            table[name] = {"backend": None, "device": device, "reasons": {"requested": str(error)}}
    return table


def report() -> dict[str, Any]:
    tests = self_test()
    table = choices()
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
        "ops": table,
        "self_test": tests,
        "ok": all(row["ok"] for row in tests) and all(row["backend"] for row in table.values()),
    }


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
    if found["requested_backend"]:
        lines.append(f"EDM_FAST_BACKEND={found['requested_backend']}")
    lines.append("ops:")
    for name, row in found["ops"].items():
        lines.append(f"  {name:17s} {row['backend'] or 'cannot run'} on {row['device']}")
        lines += [
            f"  {'':17s}   {'not ' * bool(row['backend'])}{other}: {why}" for other, why in row["reasons"].items()
        ]
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
