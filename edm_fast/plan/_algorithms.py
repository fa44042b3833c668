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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from edm_fast import native
from edm_fast.ops.conv2d import pack
from edm_fast.plan import _table
from edm_fast.plan._table import Table

# codes of csrc/conv2d.h
DIRECT, WINOGRAD2, WINOGRAD4, INT16, WINOGRAD4_INT16 = 0, 2, 4, 10, 14
WINOGRAD2_UP, WINOGRAD4_UP, WINOGRAD4_UP_INT16 = 22, 24, 34
WINOGRAD2_PLAIN, WINOGRAD4_PLAIN, WINOGRAD4X8_PLAIN, WINOGRAD2_UP_PLAIN, WINOGRAD4_UP_PLAIN = 102, 104, 148, 122, 124
PAIRS = 1000  # added to a code
NAMES = {
    DIRECT: "direct",
    WINOGRAD2: "winograd2",
    WINOGRAD4: "winograd4",
    INT16: "int16",
    WINOGRAD4_INT16: "winograd4-int16",
    WINOGRAD2_UP: "winograd2-up",
    WINOGRAD4_UP: "winograd4-up",
    WINOGRAD4_UP_INT16: "winograd4-up-int16",
    WINOGRAD2_PLAIN: "winograd2-plain",
    WINOGRAD4_PLAIN: "winograd4-plain",
    WINOGRAD4X8_PLAIN: "winograd4x8-plain",
    WINOGRAD2_UP_PLAIN: "winograd2-up-plain",
    WINOGRAD4_UP_PLAIN: "winograd4-up-plain",
}
# that take products in pairs of terms
PAIRED = (PAIRS + DIRECT, *(PAIRS + a for a in NAMES if a > 100))
NAMES |= {a: f"{NAMES[a - PAIRS]}-paired" for a in PAIRED}
# that read the weight as the network holds it, and pack nothing
PLAIN = tuple(a for a in NAMES if a % PAIRS > 100)
# of these, those that are packed nothing but what balances the channels of image and weight
BALANCED = tuple(a for a in PLAIN if a in PAIRED)
# with the doubling of the image before it
MERGED = tuple(a for a in NAMES if a % PAIRS % 100 in (WINOGRAD2_UP, WINOGRAD4_UP, WINOGRAD4_UP_INT16))
INTEGERS = (INT16, WINOGRAD4_INT16, WINOGRAD4_UP_INT16)
# the error of F(2x2) is that of torch or less, that of F(4x4) up to six times torch's best, that of F(4x8) thirty;
# pairs add up to a third (benchmarks/NOTES.md), which for F(2x2) of a doubled image is more than twice torch's;
# integers of 16 bits keep more of a layer's input than bfloat16 does, at the speed of it
ALLOWED: dict[str, tuple[int, ...]] = {
    "exact": (
        *(DIRECT, WINOGRAD2, WINOGRAD2_UP, WINOGRAD2_PLAIN, WINOGRAD2_UP_PLAIN),
        *(PAIRS + DIRECT, PAIRS + WINOGRAD2_PLAIN),
    ),
    "fp32": tuple(a for a in NAMES if a not in INTEGERS),
    "bf16": tuple(NAMES),
}
FEWEST_PAIRED = 48  # channels: with fewer there are no pairs, see csrc/cpu/_pairs.h
COLD_ROUNDS, WARM_ROUNDS = 5, 15  # the best of them counts
VERSION = 6  # of the kernels: another one makes old measurements void


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

    def __call__(self, shape: Shape) -> dict[int, float]:
        allowed = [a for a in self.allowed if fits(a, shape)]
        return costs(table(self.folder), shape, allowed, self.cold) if len(allowed) > 1 else dict.fromkeys(allowed, 0.0)


def fastest(seconds: Mapping[int, float]) -> int:
    return min(seconds, key=lambda a: seconds[a])


def packed_size(shape: Shape, algorithm: int) -> int:
    """Floats of the packed weight."""
    sizes = dict(outputs=shape.outputs, inputs=shape.channels, kernel=shape.kernel)
    return native.lib.conv2d_packed_size(algorithm=algorithm, **sizes)


def _sizes(shape: Shape, algorithm: int) -> dict[str, int]:
    """Arguments of the native convolution and of the size of its workspace."""
    return dict(
        algorithm=algorithm,
        n=shape.n,
        h=shape.h,
        w=shape.w,
        inputs=shape.channels,
        kernel=shape.kernel,
        padding=shape.padding,
    )


def workspace(shape: Shape, algorithm: int) -> int:
    """Floats of memory that a call needs."""
    return native.lib.conv2d_fwd_workspace(**_sizes(shape, algorithm))


def bind(shape: Shape, algorithm: int, **arguments: Any) -> Callable[[int], None]:
    """The native convolution with its arguments set: `arguments` are those that the shape does not say."""
    return native.bind("conv2d_fwd_cpu", **_sizes(shape, algorithm), outputs=shape.outputs, **arguments)


def fits(algorithm: int, shape: Shape) -> bool:
    """Whether the kernels have this algorithm for the shape."""
    if packed_size(shape, algorithm) < 0 or (algorithm in MERGED and not (shape.doubled and shape.padding == 1)):
        return False
    if algorithm in PAIRED and (shape.channels < FEWEST_PAIRED or not native.has_pairs()):
        return False
    if algorithm == PAIRS + DIRECT and shape.padding:
        return False
    return algorithm not in INTEGERS or (shape.channels <= 4096 and shape.kernel == 2 * shape.padding + 1)


def costs(table: Table, shape: Shape, algorithms: list[int], cold: bool = True) -> dict[int, float]:
    """Seconds of each algorithm, from the table or the clock."""
    text = f"{' '.join(map(str, dataclasses.astuple(shape)))}{'' if cold else ' warm'}"
    keys = {f"{NAMES[a]} {text}": a for a in algorithms}

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
    n, c, h, w = x.shape
    return native.bind(
        "upfirdn_fwd_cpu",
        y=to,
        x=source,
        f=f.data_ptr(),
        n=n,
        c=c,
        h=h,
        w=w,
        out_h=y.shape[2],
        out_w=y.shape[3],
        taps=f.shape[0],
        factor=factor,
        padding=padding,
        gain=float(factor**2 if up else 1),
        up=up,
        channels_last=True,
        x_pitch=pitch,
    )


def measure(shape: Shape, algorithms: list[int], cold: bool = True) -> dict[int, float]:
    """Best seconds of each algorithm, by turns, with cold caches or warm; with the doubling where there is one."""
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay what they would have been
    like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x = torch.randn(shape.n, shape.channels, shape.h, shape.w, generator=generator, **like)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty(shape.output(), **like)
    weight = torch.randn(shape.outputs, shape.channels, shape.kernel, shape.kernel, generator=generator, **like)
    flush = torch.zeros(12 * 2**20 if cold else 0, **like)
    calls: dict[int, list[Any]] = {}
    packs = {a: weight if a in PLAIN else pack(weight, a) for a in algorithms}
    balances = {a: pack(weight, a) for a in algorithms if a in BALANCED}
    room: dict[int, torch.Tensor] = {}
    wide, double = x, []
    if shape.doubled:
        own = shape.after_doubling()
        wide = torch.empty(own.n, own.channels, own.h, own.w, memory_format=torch.channels_last, **like)
        box = torch.full((2, 2), 0.25, **like)
        double = [bind_upfirdn(wide, x, box, 2, True, 0)]
    for a in algorithms:
        own, image = (shape, x) if a in MERGED else (shape.after_doubling(), wide)
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
            balance=balances[a].data_ptr() if a in BALANCED else None,
        )
        calls[a] = [step] if a in MERGED else [*double, step]
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
