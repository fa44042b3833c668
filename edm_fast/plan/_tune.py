"""Autotuning: seconds of the algorithms of a CPU's convolutions and of the ways of a GPU's calls, measured once.

They are kept by key in files of the cache folder, one per machine and version of the kernels: one choice for all
processes, as what another process has stored meanwhile counts in place of own measurements. In a large network a layer
finds its image in the caches, but its weights in main memory, and so do the measurements; in a small one weights are
still in the caches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edm_fast import native
from edm_fast.files import atomic_write, cache_folder
from edm_fast.native import Algorithm
from edm_fast.ops.conv2d import pack
from edm_fast.plan._algorithms import ALLOWED, Shape, bind, bind_upfirdn, fits, workspace
from edm_fast.plan._capture import WARMUPS
from edm_fast.plan._choice import Step

COLD_ROUNDS, WARM_ROUNDS = 5, 15  # of algorithms; the best of them counts
WAY_ROUNDS = 9
HOPELESS = 1.5  # times the fastest: a way so slow is not compiled and timed with statistics, which save less than that
ALGORITHM_VERSION, WAY_VERSION = 7, 1  # of the kernels: another one makes old measurements void

Measure = Callable[[str, Mapping[str, Callable[[], Any]]], Mapping[str, float]]  # seconds of the ways of a call

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows
    import fcntl  # type: ignore[no-redef]


class Table:
    """Seconds by shape and algorithm, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    def costs(self, keys: Sequence[str], measure: Callable[[list[str]], dict[str, float]]) -> dict[str, float]:
        """The seconds of every key; measure(keys) is asked for those that nobody knows."""
        with self.lock:
            if any(key not in self.seconds for key in keys):
                self.seconds = {**self.stored(), **self.seconds}
            missing = [key for key in keys if key not in self.seconds]
            if missing:
                self.keep(measure(missing))
            return {key: self.seconds[key] for key in keys}

    def stored(self) -> dict[str, float]:
        """What the file holds; nothing if there is none, or none that makes sense."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            found = {str(key): float(value) for key, value in json.loads(self.path.read_text()).items()}
            if all(0 <= seconds < math.inf for seconds in found.values()):
                return found
        return {}

    def keep(self, measured: dict[str, float]) -> None:
        """Put measurements into the table and its file. What another process has stored meanwhile counts in their
        place: processes that measure at the same time would choose differently, and their images differ in rounding."""
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time, and choices may change
            with _alone(self.path):
                stored = self.stored()
                measured = {**measured, **stored}
                with atomic_write(self.path, "w") as file:
                    json.dump({**self.seconds, **measured}, file, indent=0, sort_keys=True)
        self.seconds = {**measured, **self.seconds}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in such a block for the same file, where the system has locks that end with their owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network folders have none
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def table(folder: Path | None, name: str) -> Table:
    """The table NAME.json of a folder, or of the cache folder."""
    return _table((folder or cache_folder()) / "plans" / f"{name}.json")


@functools.cache
def _table(path: Path) -> Table:
    return Table(path)


def file_name(text: str) -> str:
    """Text with what a file system may not like replaced."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


class MeasuredAlgorithms:
    """Seconds of the algorithms allowed for a shape; asks the clock where the file does not know."""

    def __init__(self, precision: str, folder: Path | None = None, cold: bool = True) -> None:
        self.allowed = ALLOWED[precision]
        self.folder, self.cold = folder, cold

    def __call__(self, shape: Shape) -> dict[Algorithm, float]:
        allowed = [a for a in self.allowed if fits(a, shape)]
        return (
            costs(algorithm_table(self.folder), shape, allowed, self.cold)
            if len(allowed) > 1
            else dict.fromkeys(allowed, 0.0)
        )


def costs(table: Table, shape: Shape, algorithms: list[Algorithm], cold: bool = True) -> dict[Algorithm, float]:
    """Seconds of each algorithm, from the table or the clock."""
    text = f"{' '.join(map(str, dataclasses.astuple(shape)))}{'' if cold else ' warm'}"
    keys = {f"{a.name} {text}": a for a in algorithms}

    def measured(missing: list[str]) -> dict[str, float]:
        seconds = measure(shape, [keys[key] for key in missing], cold)
        return {key: seconds[keys[key]] for key in missing}

    return {keys[key]: seconds for key, seconds in table.costs([*keys], measured).items()}


def algorithm_table(folder: Path | None) -> Table:
    """The table of this processor, instruction set and number of threads."""
    return table(folder, f"conv2d-{ALGORITHM_VERSION}-{_processor()}-{native.isa()}-{torch.get_num_threads()}")


@functools.cache
def _processor() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in open("/proc/cpuinfo")]
        found = {key.strip(): value.strip() for key, _, value in lines}
        name = "-".join(found[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in found) or name
    return file_name(name)


def measure(shape: Shape, algorithms: list[Algorithm], cold: bool = True) -> dict[Algorithm, float]:
    """Best seconds of each algorithm, by turns, with cold caches or warm; with the doubling where there is one."""
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay what they would have been
    like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x = torch.randn(shape.n, shape.channels, shape.h, shape.w, generator=generator, **like)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty(shape.output(), **like)
    weight = torch.randn(shape.outputs, shape.channels, shape.kernel, shape.kernel, generator=generator, **like)
    flush = torch.zeros(12 * 2**20 if cold else 0, **like)
    calls: dict[Algorithm, list[Any]] = {}
    packs = {a: pack(weight, a) if a.packed else weight for a in algorithms}
    balances = {a: pack(weight, a) for a in algorithms if a.paired and not a.packed}
    room: dict[Algorithm, torch.Tensor] = {}
    wide, double = x, []
    if shape.doubled:
        own = shape.after_doubling()
        wide = torch.empty(own.n, own.channels, own.h, own.w, memory_format=torch.channels_last, **like)
        box = torch.full((2, 2), 0.25, **like)
        double = [bind_upfirdn(wide, x, box, 2, True, 0)]
    for a in algorithms:
        own, image = (shape, x) if a.doubled else (shape.after_doubling(), wide)
        room[a] = torch.empty(workspace(own, a), **like)
        step = bind(
            own,
            a,
            y=y.data_ptr(),
            x=image.data_ptr(),
            weight=packs[a].data_ptr(),
            y_pitch=shape.outputs,
            x_pitch=shape.channels,
            scale=1.0,
            workspace=room[a].data_ptr(),
            balance=balances[a].data_ptr() if a in balances else None,
        )
        calls[a] = [step] if a.doubled else [*double, step]
    best = dict.fromkeys(algorithms, float("inf"))
    for _ in range(COLD_ROUNDS if cold else WARM_ROUNDS):
        for a in algorithms:
            flush.add_(1)
            x.mul_(1)  # as the layer before has just written it
            start = time.perf_counter()
            for call in calls[a]:
                call(torch.get_num_threads())
            best[a] = min(best[a], time.perf_counter() - start)
    return best


def time_ways(step: Step, calls: Mapping[str, Callable[[], Any]], measure: Measure) -> None:
    """The step's seconds, its fastest way for the time being, and no ways but those timed."""
    plain = {name: call for name, call in calls.items() if not step.ways[name].plain}
    seconds = dict(measure(step.key, plain) if len(calls) > 1 else dict.fromkeys(plain, 0.0))
    limit = HOPELESS * min(seconds.values())
    more = {name: call for name, call in calls.items() if name not in plain and seconds[step.ways[name].plain] <= limit}
    step.seconds = {**seconds, **(measure(step.key, more) if more else {})}
    step.ways = {name: step.ways[name] for name in step.seconds}
    step.name = min(step.seconds, key=lambda name: step.seconds[name])


class MeasuredWays:
    """Seconds by the GPU's clock, kept in a file per GPU and versions: a plan is the same in every run."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device, self.folder = device, folder

    def __call__(self, key: str, ways: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        names = {f"{name} {key}": name for name in ways}

        def measured(missing: list[str]) -> dict[str, float]:
            return {key: _seconds(ways[names[key]], self.device) for key in missing}

        found = table(self.folder, self._name()).costs([*names], measured)
        return {names[key]: seconds for key, seconds in found.items()}

    def _name(self) -> str:
        chip = torch.cuda.get_device_name(self.device)
        return file_name(f"gpu-{WAY_VERSION}-{chip}-torch{torch.__version__}-triton{_triton_version()}")


@functools.cache
def _triton_version() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("triton")
    return "none"


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a call on the GPU, its launch hidden behind the calls before it."""
    with torch.cuda.device(device):
        for _ in range(WARMUPS):
            function()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(WAY_ROUNDS + 1)]
        # the stream, not the device: another thread may be capturing, which such a wait would break
        torch.cuda.current_stream(device).synchronize()
        for mark in marks[:-1]:
            mark.record()
            function()
        marks[-1].record()
        marks[-1].synchronize()
        times = [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]
    return statistics.median(times)
