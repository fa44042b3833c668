"""A call of gpu_report.py: its time, the parts that it has so far, and their files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import _gpu_pages as pages
from _gpu_process import ROOT

BUDGETS = {  # seconds
    "build": 170,
    "warm": 110,
    "networks": 180,
    "tests": 55,
    "ops": 35,
    "profile": 30,
    "training": 40,
    "sampling": 30,
    "sanitizer": 20,
    "sweep": 330,
    "races": 60,
    "counters": 60,
    "autotune": 450,
}
LAST = 6  # seconds for the tables and the archive

Part = dict[str, Any]


class Call:
    """One call of this program: its arguments, the parts so far, and what could not be written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work, self.outdir = args, Path(args.workdir), Path(args.outdir)
        self.end = time.monotonic() + args.seconds - LAST
        self.parts: dict[str, Part] = {}
        self.faults: list[str] = []
        self.lock = threading.Lock()
        for name in BUDGETS if args.resume else ():
            with contextlib.suppress(OSError, ValueError):
                self.parts[name] = json.loads((self.work / f"{name}.json").read_text(encoding="utf-8"))

    def left(self) -> float:
        return self.end - time.monotonic()

    def store(self, path: Path, text: str | bytes) -> None:
        """Whole or not at all; a disk that is full is a fault to tell of, not an end."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(text if isinstance(text, bytes) else text.encode())
            fresh.replace(path)
        except OSError as error:
            self.faults.append(f"{path.name} is not written: {error.strerror or error}")
            with contextlib.suppress(OSError):
                fresh.unlink()

    def finish(self, name: str, part: Part, log: str) -> None:
        """The files as they are after this part."""
        with self.lock:
            self._finish(name, part, log)

    def _finish(self, name: str, part: Part, log: str) -> None:
        self.parts[name] = part
        self.store(self.work / f"{name}.json", json.dumps(part, indent=1) + "\n")
        if log:
            self.store(self.work / f"{name}.log", log[-2_000_000:])
        self.store(self.outdir / "gpu-report.md", pages.page(self.parts, self.faults))
        try:
            self.store(self.outdir / "gpu-report.tar.gz", pages.archive(self.parts, self.work))
        except OSError as error:
            self.faults.append(f"there is no archive: {error.strerror or error}")

    def environment(self) -> dict[str, str]:
        """Of every process: the tree on the path, and caches that last from part to part."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        folders = {"EDM_FAST_CACHE_DIR": "cache", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
        caches = {name: os.environ.get(name) or str(self.work / folder) for name, folder in folders.items()}
        tools = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
        return {**os.environ, **caches, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PATH": tools}


def result(done: Part, summary: str, **more: Any) -> tuple[Part, str]:
    """A part and its log, of a command that is all of it."""
    ended, ok = done["status"] is not None, done["status"] == 0
    part = {"summary": summary, "ok": ok, "complete": ended, "end_of_output": done["output"][-1500:], **more}
    return part, done["output"]
