"""Mean and spread of named quantities between two ticks, one line of stats.jsonl for each tick."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from edm_fast.errors import BROKEN, UserOSError
from edm_fast.files import atomic_write
from edm_fast.training import _boards

NOISE_BORDERS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the ranges that a loss is told for
ENDS = (0.0, *NOISE_BORDERS, float("inf"))
NOISE_RANGES = [f"{low:g}-{high:g}" for low, high in zip(ENDS, ENDS[1:])]


class Stats:
    """Sums of 1, x and x^2 of every reported quantity. Tensors are summed on their device, without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (3,), or (R, 3) by ranges of noise levels
        self._borders: Tensor | None = None

    def report(self, name: str, value: Tensor | float) -> None:
        """Add all elements of `value`; they pass through float32."""
        x = torch.as_tensor(value).detach().to(torch.float32).flatten()
        moments = torch.stack([torch.full_like(x.sum(), x.numel()), x.sum(), x.square().sum()]).to(torch.float64)
        self._add(name, moments)

    def report_by_noise(self, name: str, sigma: Tensor, value: Tensor) -> None:
        """Add all elements of `value` (N, ...) to those of the range of their noise level, sigma of N elements."""
        if self._borders is None or self._borders.device != sigma.device:
            self._borders = torch.tensor(NOISE_BORDERS, device=sigma.device)
        x = value.detach().to(torch.float32).flatten(1)
        moments = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)], dim=1)
        ranges = torch.arange(len(NOISE_RANGES), device=sigma.device)
        inside = (sigma.detach().reshape(-1, 1) >= self._borders).sum(dim=1, keepdim=True) == ranges  # (N, R)
        self._add(name, torch.where(inside[:, :, None], moments.to(torch.float64)[:, None], 0.0).sum(dim=0))

    def sums(self, name: str) -> Tensor | None:
        """(number, sum, sum of squares) of a quantity on this rank since the last collect(), on its device."""
        return self._sums.get(name)

    def state(self) -> dict[str, Tensor]:
        """All sums, in the host's memory."""
        return {name: sums.cpu() for name, sums in self._sums.items()}

    def add(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Sums of state(), counted in."""
        for name, sums in state.items():
            self._add(name, sums.to(device))

    def _add(self, name: str, moments: Tensor) -> None:
        self._sums[name] = self._sums[name] + moments if name in self._sums else moments

    def collect(self, shared: list[str]) -> dict[str, dict[str, float]]:
        """{name: {num, mean, std}} of everything since the last call; `shared` ones are summed over all ranks.

        By ranges of noise levels: "NAME 0.1-0.3", of those in which there was one.
        """
        rows = {}
        for name in sorted(self._sums):
            sums = self._sums[name]
            if name in shared and dist.is_initialized():
                dist.all_reduce(sums)
            names = [name] if sums.ndim == 1 else [f"{name} {noise}" for noise in NOISE_RANGES]
            for each, (num, total, squares) in zip(names, sums.reshape(-1, 3).tolist()):
                if num:
                    mean = total / num
                    std = float(np.sqrt(max(squares / num - mean**2, 0))) if num > 1 else 0.0
                    rows[each] = {"num": int(num), "mean": mean, "std": std}
        self._sums = {}
        return rows


class StatsWriter:
    """Appends rows to stats.jsonl of a run folder, and to TensorBoard's event files where that is installed.

    `with` it: the end closes what else the numbers go to.
    """

    def __init__(self, run_dir: Path, keep_lines: int | None = None, loggers: Mapping[str, Any] | None = None) -> None:
        """keep_lines: lines of an interrupted run that stay; those after the state it goes on from are dropped.
        loggers: more boards by name, see `_boards`."""
        self.path = run_dir / "stats.jsonl"
        self.lines = 0
        if keep_lines is not None and self.path.exists():
            rows = self.path.read_bytes().splitlines()[:keep_lines]
            with atomic_write(self.path) as file:
                file.writelines(row + b"\n" for row in rows)
            self.lines = len(rows)
        self._boards: dict[str, Any] = {**(loggers or {})}
        try:
            if (board := _boards.tensorboard(run_dir / "tensorboard")) is not None:
                self._boards["TensorBoard"] = board
        except BROKEN as error:
            _boards.say_failed("TensorBoard", error)

    def __enter__(self) -> StatsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        _boards.try_each(self._boards, lambda board: board.close())

    def write(self, row: dict[str, dict[str, float]], cur_nimg: int) -> None:
        """One more line, whole or not at all."""
        line = json.dumps({**row, "timestamp": time.time()}) + "\n"
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise UserOSError(f"cannot write to {self.path}: {error.strerror or error}") from error
        self.lines += 1
        _boards.try_each(self._boards, lambda board: board.write(row, cur_nimg))


def resident_gb() -> float:
    """Memory of this process in GiB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, ValueError, IndexError):
        return 0.0


def peak_gb(device: torch.device) -> float:
    """The most memory so far in GiB: of this process, on a GPU allocated there since the last tick."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**30 if sys.platform == "darwin" else 2**20)
