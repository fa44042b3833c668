"""Peak memory of one way to run a network, in a process of its own: `python -m edm_fast.evaluation._memory JSON`."""

from __future__ import annotations

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
    """Bytes by which the resident memory of a fresh process grows at most while it loads the network and calls twice.

    UserError if the process fails.
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


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    before = peak()
    with _peers.subject(_networks.open_network(job["network"]), job["batch"]) as subject:
        call = _targets.TARGETS[job["target"]].prepare(ROWS[job["row"]], subject)
        for _ in range(2):
            call()
        print(json.dumps({"bytes": peak() - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
