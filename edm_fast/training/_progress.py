"""What people see between ticks: a bar, the speed of the first steps, and a word on busy processors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

import torch
import tqdm
from torch import Tensor

from edm_fast.training._run import Run
from edm_fast.training._stats import peak_gb
from edm_fast.training._tick import format_time

REFRESH_SEC = 1.0
SPEED_SEC = 5.0  # after the first step; then the time that the rest will take is told
WATCH_SEC = 5.0
WAITING = 0.4  # share of the time in which a thread that could run had no processor


class Progress:
    """The bar, on a terminal: loss, learning rate, peak memory, speed and time left.

    The loss is the mean since the last tick; it is read without waiting for the device.
    """

    def __init__(self, run: Run, shown: bool, file: IO[str] | None = None) -> None:
        self._run = run
        self.bar = tqdm.tqdm(
            total=int(run.options.total_kimg * 1000),
            initial=run.cur_nimg,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            file=file,
            disable=None if shown else True,  # None: shown on a terminal only
        )
        self._processors = Processors() if shown and run.device.type == "cpu" else None
        self._asked: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._next = 0.0
        self._begun = (0, 0.0) if shown else None  # (images, time) at the end of the first step, until speed is told

    def step(self) -> None:
        """After each step."""
        self.bar.update(self._run.options.batch_size)
        if self._processors is not None and self._processors.are_busy():
            self.bar.clear()
            print(self._processors.text(), flush=True)
            self._processors = None
        if self._begun is not None:
            self._tell_speed(*self._begun)
        if self.bar.disable:
            return
        if self._asked is not None and (self._asked[1] is None or self._asked[1].query()):
            count, total, _ = self._asked[0].tolist()
            rate = self._run.optimizer.param_groups[0]["lr"]
            memory = peak_gb(self._run.device)
            self.bar.set_postfix_str(f"loss {total / count:.4g}, lr {rate:.3g}, {memory:.3g} GiB", refresh=False)
            self._asked = None
        sums = self._run.stats.sums("Loss/loss")
        if self._asked is None and sums is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH_SEC
            self._asked = self._copy(sums)

    def _tell_speed(self, images: int, since: float) -> None:
        """Once: how fast the steps after the first one are, which sets things up, and how long the rest will take."""
        run, now = self._run, time.monotonic()
        if not images:
            _wait(run.device)
            self._begun = run.cur_nimg, time.monotonic()
        elif now >= since + SPEED_SEC:
            _wait(run.device)
            speed = (run.cur_nimg - images) / (time.monotonic() - since)
            left = max(run.options.total_kimg * 1000 - run.cur_nimg, 0)  # the last step may go beyond
            self.bar.clear()
            print(f"Speed: {speed:.4g} images/s; the rest takes about {format_time(left / speed)}", flush=True)
            self._begun = None

    def _copy(self, sums: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """`sums` on their way to the host, and what says that they have arrived (None: at once)."""
        if self._run.device.type != "cuda":
            return sums.clone(), None
        values, arrived = sums.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return values, arrived


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Processors:
    """Whether this process's threads wait for processors that others keep busy (Linux; elsewhere it never says so).

    From the scheduler's account of each thread: time in which it could have run and did not. Waiting for data, disks
    or other processes is no part of it.
    """

    def __init__(self) -> None:
        self._since, self._before = time.monotonic(), delays()
        self._waited = self._seconds = 0.0

    def are_busy(self) -> bool:
        seconds = time.monotonic() - self._since
        if seconds < WATCH_SEC:
            return False
        now = delays()
        self._waited = max((value - self._before[tid] for tid, value in now.items() if tid in self._before), default=0)
        self._seconds, self._since, self._before = seconds, time.monotonic(), now
        return self._waited > WAITING * seconds

    def text(self) -> str:
        waited = f"of the last {self._seconds:.0f} s, a thread of this process waited {self._waited:.0f} s for one"
        threads = torch.get_num_threads()
        advice = f". {threads} threads that wait for each other can be ten times slower than one: see OMP_NUM_THREADS"
        return f"The processors are busy with other work: {waited}{advice if threads > 1 else ''}"


def delays() -> dict[str, float]:
    """Seconds that each thread has waited for a processor; empty where the system does not tell."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[path.parent.name] = int(path.read_text().split()[1]) * 1e-9
        except (OSError, ValueError, IndexError):
            continue
    return found
