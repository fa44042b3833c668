"""Autotuning: which algorithms of a CPU's convolutions and which implementations on a GPU work, and their seconds.

Each candidate runs once before it is timed, and its result is compared with plain torch's: one that raises, or errs
beyond its budget, is dropped, and the reason is recorded. The others are timed by turns; the least time of each counts,
as whatever else the machine does only adds to it, with the spread of the times beside it. In a large network a layer
finds its image in the caches, but its weights in main memory, and so do the measurements; in a small one weights are
still in the caches. What was found is kept in tables: see `_table`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast import backend, native, timing
from edm_fast.cases import widened
from edm_fast.errors import BROKEN, UserError, one_line
from edm_fast.native import Algorithm
from edm_fast.ops.conv2d.cpu import lower as lower_conv2d
from edm_fast.ops.conv2d.cpu import pack
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.ops.upfirdn.cpu import lower as lower_upfirdn
from edm_fast.plan._algorithms import ALLOWED, Shape, fits, workspace
from edm_fast.plan._capture import Captured
from edm_fast.plan._gpu_program import tensor_float
from edm_fast.plan._select import Candidate
from edm_fast.plan._table import HOPELESS, MAX_COUNT, Measurement, Table, file_name, table

COLD_ROUNDS, WARM_ROUNDS, GPU_ROUNDS = 5, 15, 5  # of algorithms, and on a GPU
MORE_ROUNDS, LIMIT = 3, 0.25  # while times disagree: times as many rounds in all, begun within so many seconds
GPU_TURN = 1e-3  # seconds: shorter calls on a GPU are repeated
RECORDED = 10  # of them as one graph: Python takes longer to launch some calls than the GPU to run them
TOO_SLOW = 2.0  # times the fastest, by two replays: not worth more rounds
SLACK = 2.0  # times the budget of an op, which is for the inputs of its tests
ALGORITHM_VERSION, GPU_VERSION = 11, 5  # of the kernels: another one makes old measurements void

FACTORS = {1: 2.0, 2: 2.0, 4: 8.0, 8: 40.0}  # times torch's error: of tiles by their columns

Calls = Mapping[str, functools.partial[Any]]
Measure = Callable[[str, Calls], Mapping[str, float]]  # seconds of the implementations of a call


def fault_of(result: Any, plain: torch.Tensor, exact: torch.Tensor, factor: float, eps: float = 0.0) -> str:
    """Why a result is wrong, or nothing. `plain` is torch's in the precision of the result, `exact` in a better one.

    Budget: `factor` times torch's own error and a floor of four roundings of the largest value, all times SLACK. Where
    torch's is not finite nothing is compared.
    """
    if not isinstance(result, torch.Tensor) or result.shape != plain.shape:
        got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        return f"its result is {got} where torch's is {tuple(plain.shape)}"
    if plain.numel() == 0:
        return ""
    known = plain.isfinite()
    error, own, size = (
        torch.where(known, value.to(exact.dtype), 0).abs().max().item()
        for value in (result - exact, plain - exact, exact)
    )
    budget = SLACK * (factor * own + 4 * max(eps, torch.finfo(plain.dtype).eps) * size)
    return "" if error <= budget else f"its error is {error:.1e}, allowed are {budget:.1e}"  # nan is not allowed


def raised(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {one_line(error)[:200]}"


class MeasuredAlgorithms:
    """Seconds of the algorithms allowed for a shape that work; asks the clock where the file does not know."""

    def __init__(self, precision: str, folder: Path | None = None, cold: bool = True) -> None:
        self.allowed = ALLOWED[precision]
        self.folder, self.cold = folder, cold

    def __call__(self, shape: Shape) -> dict[Algorithm, float]:
        allowed = [a for a in self.allowed if fits(a, shape)]
        if len(allowed) < 2:
            return dict.fromkeys(allowed, 0.0)
        return costs(algorithm_table(self.folder), shape, allowed, self.cold)


def costs(table: Table, shape: Shape, algorithms: list[Algorithm], cold: bool = True) -> dict[Algorithm, float]:
    """Seconds of each algorithm that works, from the table or the clock."""
    text = f"conv2d {' '.join(map(str, dataclasses.astuple(shape)))}{'' if cold else ' warm'}"
    keys = {f"{a.name} {text}": a for a in algorithms}

    def measured(missing: list[str]) -> dict[str, Measurement]:
        rows = measure(shape, [keys[key] for key in missing], cold)
        return {key: rows[keys[key]] for key in missing}

    return {keys[key]: seconds for key, seconds in table.seconds([*keys], measured).items()}


def algorithm_table(folder: Path | None) -> Table:
    """The table of this processor, instruction set and number of threads."""
    return table(folder, f"conv2d-{ALGORITHM_VERSION}-{_processor()}-{native.isa()}-{torch.get_num_threads()}")


@functools.cache
def _processor() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        found = {key.strip(): value.strip() for key, _, value in lines}
        name = "-".join(found[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in found) or name
    return file_name(name)


def measure(shape: Shape, algorithms: list[Algorithm], cold: bool = True) -> dict[Algorithm, Measurement]:
    """Each algorithm's row, by turns, with cold caches or warm; with the doubling where there is one."""
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay what they would have been
    like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x = torch.randn(shape.n, shape.channels, shape.h, shape.w, generator=generator, **like)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty(shape.output(), memory_format=torch.channels_last, **like)
    weight = torch.randn(shape.outputs, shape.channels, shape.kernel, shape.kernel, generator=generator, **like)
    flush = torch.zeros(12 * 2**20 if cold else 0, **like)
    box = torch.full((2, 2), 0.25, **like)
    own, wide, double = shape.after_doubling(), x, []
    if shape.doubled:
        wide = torch.empty(own.n, own.channels, own.h, own.w, memory_format=torch.channels_last, **like)
        double = [lower_upfirdn(wide, UpfirdnArgs(x, box, up=2), None)]
    memory: list[torch.Tensor] = []  # that the calls read and write by address

    def prepared(a: Algorithm) -> Callable[[], None]:
        seen, image = (shape, x) if a.doubled else (own, wide)
        packed = pack(weight, a) if a.packed or a.paired else weight
        work = torch.empty(workspace(seen, a), **like)
        memory.extend((packed, work))
        read, balance = (packed, None) if a.packed or not a.paired else (weight, packed)
        step = lower_conv2d(y, image, read, a, shape.kernel, shape.padding, workspace=work, balance=balance)
        steps = [step] if a.doubled else [*double, step]

        def call() -> None:
            for step in steps:
                step(torch.get_num_threads())

        return call

    def before() -> None:
        flush.add_(1)
        x.mul_(1)  # as the layer before has just written it

    rows: dict[Algorithm, Measurement] = {}
    calls: dict[Algorithm, Callable[[], None]] = {}
    wrong = _judge(x, weight, shape)
    for a in algorithms:
        try:
            call = prepared(a)
            y.fill_(math.nan)
            call()
            fault = wrong(a, y[:1])
        except Exception as error:
            fault = raised(error)
        if fault:
            rows[a] = Measurement(fault=fault)
        else:
            calls[a] = call
    rounds = COLD_ROUNDS if cold else WARM_ROUNDS
    times = timing.by_turns(calls, rounds, before=before, most=MORE_ROUNDS * rounds, limit=LIMIT)
    return {**rows, **{a: Measurement(min(found), timing.spread(found)) for a, found in times.items()}}


def _judge(x: torch.Tensor, weight: torch.Tensor, shape: Shape) -> Callable[[Algorithm, torch.Tensor], str]:
    """Why the first image of an algorithm's result is wrong, or nothing. Budgets as in tests/helpers/native_conv.py."""
    image = x[:1].repeat_interleave(2, 2).repeat_interleave(2, 3) if shape.doubled else x[:1]

    def convolved(dtype: torch.dtype, rounded: torch.dtype | None = None) -> torch.Tensor:
        a, b = (t.to(rounded or dtype).to(dtype) for t in (image, weight))
        return F.conv2d(a, b, padding=shape.padding)

    exact, plain = convolved(torch.float64), convolved(torch.float32)

    def wrong(a: Algorithm, result: torch.Tensor) -> str:
        if a.int16:  # what rounding the operands to bfloat16 costs
            return fault_of(result, convolved(torch.float64, torch.bfloat16).float(), exact, 1.0)
        return fault_of(result, plain, exact, FACTORS[a.columns])

    return wrong


def time_candidates(candidates: Sequence[Candidate], calls: Calls, key: str, measure: Measure) -> list[Candidate]:
    """Those that work, with their seconds. Hopeless ones are not timed with statistics. The first is torch's."""
    base = {candidate.name: calls[candidate.name] for candidate in candidates if not candidate.base}
    seconds = dict(measure(key, base) if len(calls) > 1 else dict.fromkeys(base, 0.0))
    limit, first = HOPELESS * min(seconds.values()), candidates[0].name
    more = {first: calls[first]}
    more |= {c.name: calls[c.name] for c in candidates if seconds.get(c.base, math.inf) <= limit}
    seconds = {**(measure(key, more) if len(more) > 1 else {}), **seconds}
    return [dataclasses.replace(c, seconds=seconds[c.name]) for c in candidates if c.name in seconds]


class MeasuredImplementations:
    """Seconds by the GPU's clock of the implementations of a call that work. The first, torch's, is never dropped.

    record(function, device, beside) makes a graph of calls, as `Captured`; None: calls are timed one by one.
    """

    def __init__(
        self,
        device: torch.device,
        folder: Path | None = None,
        clock: timing.Clock | None = None,
        record: Callable[..., Any] | None = None,
    ) -> None:
        self.device, self.folder = device, folder
        self.clock = clock or timing.clock_of(device)
        self.record = Captured if clock is None and device.type == "cuda" else record
        self.beside: Any = None  # a graph whose memory those that are timed use, one after the other

    def __call__(self, key: str, implementations: Calls) -> dict[str, float]:
        names = {f"{name} {key}": name for name in implementations}
        known = table(self.folder, self._name())

        def measured(missing: list[str]) -> dict[str, Measurement]:
            rows: dict[str, Measurement] = {}
            calls: dict[str, Callable[[], Any]] = {}
            first = next(iter(implementations))
            with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
                wrong = self._judge(implementations[first])
                for name in missing:
                    call = implementations[names[name]]
                    try:
                        fault = wrong(call()) if names[name] != first else ""
                    except Exception as error:
                        fault = raised(error)
                        self._alive(known, name, fault)
                    if fault:
                        rows[name] = Measurement(fault=fault)
                    else:
                        calls[name] = call
                return rows | self._timed(calls, f"{first} {key}")

        return {names[name]: seconds for name, seconds in known.seconds([*names], measured).items()}

    def _timed(self, calls: Mapping[str, Callable[[], Any]], first: str) -> dict[str, Measurement]:
        """Rows of calls that work; those that cannot be recorded are dropped, but for the first."""
        replays, counts, rows = {}, dict.fromkeys(calls, 1), {}
        for name, call in calls.items():
            try:
                counts[name], replays[name] = self._recorded(call)
            except Exception as error:
                if name == first:
                    replays[name] = call
                else:
                    rows[name] = Measurement(fault=f"it cannot be recorded: {raised(error)}")
        if self.record is not None:
            once = {
                name: min(self.clock(replay, 1) for _ in range(2)) / counts[name] for name, replay in replays.items()
            }
            slow = {name for name, seconds in once.items() if seconds > TOO_SLOW * min(once.values())}
            rows |= {name: Measurement(once[name]) for name in slow}
            replays = {name: replay for name, replay in replays.items() if name not in slow}
        most = MORE_ROUNDS * GPU_ROUNDS
        times = timing.by_turns(replays, GPU_ROUNDS, GPU_TURN, self.clock, most=most, limit=LIMIT)
        measured = {n: Measurement(min(found) / counts[n], timing.spread(found)) for n, found in times.items()}
        return {**rows, **measured}

    def _recorded(self, call: Callable[[], Any]) -> tuple[int, Callable[[], Any]]:
        """A function that makes some calls of it, without Python between them if `record` is there, and how many."""
        if self.record is None:
            return 1, call
        self.beside = self.beside or self.record(functools.partial(torch.zeros, 1, device=self.device), self.device)
        count = min(max(1, math.ceil(GPU_TURN / max(self.clock(call, 1), 1e-9))), RECORDED)

        def several() -> None:
            for _ in range(count):
                call()

        return count, self.record(several, self.device, self.beside)

    def drop(self, name: str, fault: str) -> None:
        """What worked when it was measured does not now: for this process and those after it."""
        known = table(self.folder, self._name())
        self._alive(known, name, fault)
        row = {name: Measurement(fault=fault)}
        known.rows |= row
        known.keep(row, known.stored())

    def _judge(self, first: functools.partial[Any]) -> Callable[[Any], str]:
        """What says why a result is wrong, or nothing."""
        tf32 = torch.backends.cuda.matmul.allow_tf32
        plain, eps = first(), 2.0**-10 if tf32 else 0.0  # roundings of products
        dtype = torch.float64 if plain.dtype == torch.float32 else torch.float32
        try:
            with tensor_float(tf32, benchmark=False):  # which would take longer than this one call
                exact = first.func(*widened(first.args, dtype), **widened(first.keywords, dtype))
        except RuntimeError:  # no memory, or no kernel for such a size; torch's own error is not known then
            exact, eps = plain, max(eps, 2.0**-17)
        every = [implementation for op in backend.ops().values() for implementation in op.implementations.values()]
        factor = max(implementation.budget for implementation in every if implementation.device in ("any", "cuda"))

        def wrong(result: Any) -> str:
            image, *statistics = result if isinstance(result, tuple) else (result,)
            return fault_of(image, plain, exact, factor, eps) or next(map(_odd_statistics, [plain], statistics), "")

        return wrong

    def _alive(self, known: Table, name: str, fault: str) -> None:
        """UserError if the GPU does nothing any more in this process; the next one drops what did that."""
        try:
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
        except RuntimeError:
            known.keep({name: Measurement(fault=fault, count=MAX_COUNT)}, known.stored())  # or it stops others later
            raise UserError(
                f"the GPU stopped when {name.split()[0]} was tried: {fault}; it is dropped now, start again"
            ) from None

    def _name(self) -> str:
        chip = torch.cuda.get_device_name(self.device)
        return file_name(
            f"gpu-{GPU_VERSION}-{chip}-torch{torch.__version__}-triton{_triton_version()}-{_blocks_version(chip)}"
        )


def _odd_statistics(image: torch.Tensor, found: torch.Tensor) -> str:
    """Why mean and 1 / sqrt(var + eps), eps at most 1e-3, of groups of an image's channels are wrong, or nothing."""
    if found.ndim != 3 or found.shape[:2] != (2, len(image)):
        return f"its statistics are {tuple(found.shape)}"
    var, mean = torch.var_mean(image.float().unflatten(1, (found.shape[-1], -1)), (2, 3, 4), correction=0)
    low, high = 0.98 * (var + 1e-3).rsqrt(), 1.02 * var.rsqrt()
    fine = ((found[0] - mean).abs() <= 0.02 * (var + mean**2).sqrt()) & (low <= found[1]) & (found[1] <= high)
    return "" if bool((fine | ~(mean + var).isfinite()).all()) else "its statistics are not those of its image"


@functools.cache
def _blocks_version(chip: str) -> str:
    try:
        from edm_fast.kernels import _conv2d_tuned  # late: a missing triton is a reason, not a crash
    except BROKEN:
        return "none"
    return _conv2d_tuned.version(chip)


@functools.cache
def _triton_version() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("triton")
    return "none"
