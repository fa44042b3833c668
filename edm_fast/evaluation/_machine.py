"""What a measurement was made on: hardware, versions and switches, and a name for files."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edm_fast import __version__, native

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16")  # those that decide speed here


def cpu_name() -> str:
    """The processor, with its family and model where the name alone leaves the generation open."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    if not re.search(r"\d", name) and "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info.get('model', '?')})"
    return " ".join(name.split())


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def settings(device: torch.device) -> dict[str, Any]:
    """Everything that two measurements must share to be compared."""
    flags = set(_cpuinfo().get("flags", "").split())
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": native.isa() if native.cpu_reason() is None else "none: not compiled",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "edm_fast": __version__,
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
    }


def slug(found: dict[str, Any]) -> str:
    """A name for files: "cpu-amd-epyc-9r14-avx512-2-threads"."""
    if found["device"] != "cpu":
        return _plain(found["device"])
    isa = found["isa"].partition(":")[0]
    return _plain(f"cpu {found['cpu']} {isa} {found['threads']} threads")


def _plain(text: str) -> str:
    text = re.sub(r"\((r|tm)\)|\bcpu @.*ghz|\b\d+-core processor|\bprocessor\b", " ", text.lower())
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch's number of threads inside the block; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
