"""Peak memory of one way to run a network, in a process of its own: `python -m edm_fast.evaluation._memory JSON`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from edm_fast.errors import UserError
from edm_fast.evaluation import _networks, _peers, _targets
from edm_fast.evaluation._rows import ROWS


def peak_growth(target: str, network: str, batch: int, row: str) -> int:
    """Bytes of the network's weights, and by which the resident memory of a fresh process that has loaded them grows at
    most while a row is built and called twice. UserError if the process fails.

    What loading leaves free in the process does not count: it would hide the memory of one row and not of another.
    """
    job = {"target": target, "network": network, "batch": batch, "row": row, "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "edm_fast.evaluation._memory", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"memory of {row}: {last[:160]}")
    return json.loads(done.stdout.splitlines()[-1])["bytes"]


def peak() -> int:
    """The most bytes this process has had in memory.

    Linux hands ru_maxrss of a parent on to its child, so a large parent would hide everything; VmHWM starts anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> int:
    """Give free memory back to the system and let the peak start anew, where the system has that; returns the peak."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    with _peers.subject(_networks.open_network(job["network"]), job["batch"]) as subject:
        weights = sum(t.numel() * t.element_size() for t in subject.net.state_dict().values())
        before = forget_peak()
        call = _targets.TARGETS[job["target"]].prepare(ROWS[job["row"]], subject)
        for _ in range(2):
            call()
        print(json.dumps({"bytes": weights + peak() - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
