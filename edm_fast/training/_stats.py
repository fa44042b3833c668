"""Mean and spread of named quantities between two ticks, one line of stats.jsonl for each tick."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from edm_fast.files import atomic_write


class Stats:
    """Sums of 1, x and x^2 of every reported quantity. Tensors are summed on their device, without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def report(self, name: str, value: Tensor | float) -> None:
        """Add all elements of `value`; they pass through float32."""
        x = torch.as_tensor(value).detach().to(torch.float32).flatten()
        moments = torch.stack([torch.full_like(x.sum(), x.numel()), x.sum(), x.square().sum()]).to(torch.float64)
        self._sums[name] = self._sums[name] + moments if name in self._sums else moments

    def collect(self, shared: list[str]) -> dict[str, dict[str, float]]:
        """{name: {num, mean, std}} of everything since the last call; `shared` ones are summed over all ranks."""
        rows = {}
        for name in sorted(self._sums):
            sums = self._sums[name]
            if name in shared and dist.is_initialized():
                dist.all_reduce(sums)
            num, total, squares = sums.tolist()
            mean = total / num
            std = float(np.sqrt(max(squares / num - mean**2, 0))) if num > 1 else 0.0
            rows[name] = {"num": int(num), "mean": mean, "std": std}
        self._sums = {}
        return rows


class StatsWriter:
    """Appends rows to stats.jsonl of a run folder, and to TensorBoard's event files where that is installed."""

    def __init__(self, run_dir: Path, keep_lines: int | None = None) -> None:
        """keep_lines: lines of an interrupted run that stay; those after the state it goes on from are dropped."""
        self.path = run_dir / "stats.jsonl"
        self.lines = 0
        if keep_lines is not None and self.path.exists():
            rows = self.path.read_text().splitlines()[:keep_lines]
            with atomic_write(self.path, "w") as file:
                file.writelines(row + "\n" for row in rows)
            self.lines = len(rows)
        self._board: Any = _tensorboard(run_dir / "tensorboard")

    def write(self, row: dict[str, dict[str, float]], cur_nimg: int) -> None:
        line = json.dumps({**row, "timestamp": time.time()})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines += 1
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value["mean"], global_step=cur_nimg)
            self._board.flush()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(folder))


def resident_gb() -> float:
    """Memory of this process in GiB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, ValueError, IndexError):
        return 0.0
