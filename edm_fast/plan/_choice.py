"""Which way each call of a GPU plan runs: each call's ways are measured once, and their sum is made least.

Statistics couple the choices: a norm can take those of its image only where the convolution before it left them, which
costs that one time. A norm reads one image, so that the calls so coupled are trees, and the least sum is found exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edm_fast.plan import _table
from edm_fast.plan._capture import WARMUPS
from edm_fast.plan._fused import Asked
from edm_fast.plan._trace import Node, Value
from edm_fast.plan._ways import Way

ROUNDS = 9
HOPELESS = 1.5  # times the fastest: a way so slow is not compiled and timed with statistics, which save less than that
VERSION = 1  # of the kernels: another one makes old measurements void

Measure = Callable[[str, Mapping[str, Callable[[], Any]]], Mapping[str, float]]  # seconds of the ways of a call


@dataclasses.dataclass(eq=False)
class Step:
    """A node, the ways it may run, the chosen one's name, and the values nobody reads after it."""

    node: Node
    image: Value | None = None  # whose statistics its norm may take
    asked: Asked | None = None  # the statistics it may leave
    dead: list[Value] = dataclasses.field(default_factory=list)
    key: str = ""
    ways: dict[str, Way] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    name: str = ""

    @property
    def way(self) -> Way:
        return self.ways[self.name]

    @property
    def output(self) -> Value:
        return self.node.outputs[0]


def time_ways(step: Step, calls: Mapping[str, Callable[[], Any]], measure: Measure) -> None:
    """The step's seconds, its fastest way for the time being, and no ways but those timed."""
    plain = {name: call for name, call in calls.items() if not step.ways[name].plain}
    seconds = dict(measure(step.key, plain) if len(calls) > 1 else dict.fromkeys(plain, 0.0))
    limit = HOPELESS * min(seconds.values())
    more = {name: call for name, call in calls.items() if name not in plain and seconds[step.ways[name].plain] <= limit}
    step.seconds = {**seconds, **(measure(step.key, more) if more else {})}
    step.ways = {name: step.ways[name] for name in step.seconds}
    step.name = min(step.seconds, key=lambda name: step.seconds[name])


def cheapest(steps: Sequence[Step]) -> None:
    """Choose a way for every step: the least sum of seconds in which whoever takes statistics finds them made.

    From the last step back: the least for a step and all that hang on its choice, with the statistics of its image
    given and without. Then forth, along what was given.
    """
    readers: dict[Value, list[Step]] = {}
    for step in steps:
        if step.image is not None:
            readers.setdefault(step.image, []).append(step)
    least: dict[tuple[Step, bool], tuple[float, str]] = {}

    def total(step: Step, name: str) -> float:
        makes = step.ways[name].makes
        return step.seconds[name] + sum(least[reader, makes][0] for reader in readers.get(step.output, ()))

    for step in reversed(steps):
        for given in (False, True):
            able = [(total(step, name), name) for name, way in step.ways.items() if given or not way.takes]
            least[step, given] = min(able, key=lambda found: found[0])
    made: set[Value | None] = set()
    for step in steps:
        _, step.name = least[step, step.image in made]
        if step.way.makes:
            made.add(step.output)


class Measured:
    """Seconds by the GPU's clock, kept in a file per GPU and versions: a plan is the same in every run."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device, self.folder = device, folder

    def __call__(self, key: str, ways: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        names = {f"{name} {key}": name for name in ways}

        def measured(missing: list[str]) -> dict[str, float]:
            return {key: _seconds(ways[names[key]], self.device) for key in missing}

        found = _table.table(self.folder, self._name()).costs([*names], measured)
        return {names[key]: seconds for key, seconds in found.items()}

    def _name(self) -> str:
        chip = torch.cuda.get_device_name(self.device)
        return _table.file_name(f"gpu-{VERSION}-{chip}-torch{torch.__version__}-triton{_triton_version()}")


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
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
        # the stream, not the device: another thread may be capturing, which such a wait would break
        torch.cuda.current_stream(device).synchronize()
        for mark in marks[:-1]:
            mark.record()
            function()
        marks[-1].record()
        marks[-1].synchronize()
        times = [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]
    return statistics.median(times)
