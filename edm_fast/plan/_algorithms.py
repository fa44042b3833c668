"""The algorithms a convolution may run on, by its precision, and their seconds, measured once per shape and machine.

Measurements are kept in a file of the cache folder, so that a plan is the same from run to run and in processes side
by side. In a large network a layer finds its image in the caches, but its weights in main memory, and so do the
measurements; in a small one weights are still in the caches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edm_fast import native
from edm_fast.native import Algorithm
from edm_fast.ops.conv2d import pack
from edm_fast.plan import _table
from edm_fast.plan._table import Table

PRECISIONS = "exact", "fp32", "bf16"  # each allows its own error class and those before it
ALLOWED = {
    precision: tuple(a for a in native.ALGORITHMS.values() if a.error in PRECISIONS[: place + 1])
    for place, precision in enumerate(PRECISIONS)
}
FEWEST_PAIRED = 48  # channels: with fewer there are no pairs, see csrc/cpu/_pairs.h
COLD_ROUNDS, WARM_ROUNDS = 5, 15  # the best of them counts
VERSION = 7  # of the kernels: another one makes old measurements void


@dataclasses.dataclass(frozen=True)
class Shape:
    """A convolution: images (n, channels, h, w) to `outputs` channels; `doubled`: of images whose pixels are each
    repeated in a square before it."""

    n: int
    channels: int
    h: int
    w: int
    outputs: int
    kernel: int
    padding: int
    doubled: bool = False

    def after_doubling(self) -> Shape:
        """The convolution alone."""
        return dataclasses.replace(self, h=2 * self.h, w=2 * self.w, doubled=False) if self.doubled else self

    def output(self) -> tuple[int, int, int, int]:
        own, grow = self.after_doubling(), 2 * self.padding - self.kernel + 1
        return own.n, own.outputs, own.h + grow, own.w + grow


class Measured:
    """Seconds of the algorithms allowed for a shape; asks the clock where the file does not know."""

    def __init__(self, precision: str, folder: Path | None = None, cold: bool = True) -> None:
        self.allowed = ALLOWED[precision]
        self.folder, self.cold = folder, cold

    def __call__(self, shape: Shape) -> dict[Algorithm, float]:
        allowed = [a for a in self.allowed if fits(a, shape)]
        return costs(table(self.folder), shape, allowed, self.cold) if len(allowed) > 1 else dict.fromkeys(allowed, 0.0)


def fastest(seconds: Mapping[Algorithm, float]) -> Algorithm:
    return min(seconds, key=lambda a: seconds[a])


def packed_size(shape: Shape, algorithm: Algorithm) -> int:
    """Floats of the packed weight."""
    return native.lib.conv2d_packed_size(algorithm, shape.outputs, shape.channels, shape.kernel)


def workspace(shape: Shape, algorithm: Algorithm) -> int:
    """Floats of memory that a call needs."""
    sizes = shape.n, shape.h, shape.w, shape.channels, shape.padding
    return native.lib.conv2d_fwd_workspace(algorithm, *sizes)


def bind(
    shape: Shape,
    algorithm: Algorithm,
    addresses: Sequence[int],
    rows: int,
    pitches: Sequence[int],
    scale: float,
    silu: bool = False,
) -> Callable[[int], None]:
    """The native convolution with its arguments set.

    addresses: of y, x, weight, bias, residual, workspace, the norm before it, whose SiLU is `silu`, and the balance;
    rows of the bias; pitches of y, x and the residual.
    """
    sizes = shape.n, shape.h, shape.w, shape.channels, shape.outputs, shape.kernel, shape.padding
    return native.bind("conv2d_fwd_cpu", *addresses, (*sizes, rows, *pitches), scale, silu, False, algorithm)


def fits(algorithm: Algorithm, shape: Shape) -> bool:
    """Whether the kernels have this algorithm for the shape."""
    if algorithm.paired and (shape.channels < FEWEST_PAIRED or not native.has_pairs()):
        return False
    supported = native.lib.conv2d_supports(algorithm, shape.channels, shape.kernel, shape.padding)
    return supported and (shape.doubled or not algorithm.doubled)


def costs(table: Table, shape: Shape, algorithms: list[Algorithm], cold: bool = True) -> dict[Algorithm, float]:
    """Seconds of each algorithm, from the table or the clock."""
    text = f"{' '.join(map(str, dataclasses.astuple(shape)))}{'' if cold else ' warm'}"
    keys = {f"{a.name} {text}": a for a in algorithms}

    def measured(missing: list[str]) -> dict[str, float]:
        seconds = measure(shape, [keys[key] for key in missing], cold)
        return {key: seconds[keys[key]] for key in missing}

    return {keys[key]: seconds for key, seconds in table.costs([*keys], measured).items()}


def table(folder: Path | None) -> Table:
    """The table of this processor, instruction set and number of threads."""
    return _table.table(folder, f"conv2d-{VERSION}-{_processor()}-{native.isa()}-{torch.get_num_threads()}")


@functools.cache
def _processor() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in open("/proc/cpuinfo")]
        found = {key.strip(): value.strip() for key, _, value in lines}
        name = "-".join(found[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in found) or name
    return _table.file_name(name)


def bind_upfirdn(
    y: torch.Tensor, x: torch.Tensor, f: torch.Tensor, factor: int, up: bool, padding: int
) -> Callable[[int], None]:
    """The native resampling of x (N, C, H, W) to y, channels last, with its arguments set."""
    assert f.ndim == 2 and f.shape[0] == f.shape[1]
    (to, _), (source, pitch) = native.window(y), native.window(x)
    sizes = tuple(x.shape), *y.shape[2:], f.shape[0], factor, padding
    return native.bind(
        "upfirdn_fwd_cpu", to, source, f.data_ptr(), *sizes, float(factor**2 if up else 1), up, True, pitch
    )


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
        balance = balances[a].data_ptr() if a in balances else 0
        addresses = (y.data_ptr(), image.data_ptr(), packs[a].data_ptr(), 0, 0, room[a].data_ptr(), 0, balance)
        step = bind(own, a, addresses, 0, (shape.outputs, shape.channels, shape.outputs), 1.0)  # no bias, dense images
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
