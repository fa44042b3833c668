"""A machine for the few instructions of Gluon that a kernel of ours uses: it runs the very source in Python, event by
event, in any order that barriers allow.

Actors are the partitions of a program. Beside them copies by TMA and products of two warp groups are in flight: each
takes effect at some moment of its own, products of a group one after the other. `choose(options, state)` picks what
happens next of several events. Errors: no event is left though an actor waits; a slot is written while something
reads or writes it; something is read before it is whole; what TMA reads was not fenced.
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.gluon_memory import Barrier, Descriptor, Fault, Pointer, Ring, Tile

GROUPS = 2  # of four warps: each multiplies half of the rows
Choose = Callable[[Sequence[str], Any], int]


class Pruned(BaseException):
    """The end of a run that goes where another one has been."""


class Products:
    """Sums on the matrix units; each group has its products in flight in their order."""

    def __init__(self, machine: Machine, values: torch.Tensor) -> None:
        self.machine, self.values, self.shape = machine, values, values.shape

    def add(self, x: Tile, weight: Tile) -> None:
        rows = self.values.shape[0] // GROUPS
        for tile in (x, weight):
            tile.whole.readers += GROUPS
        for group in range(GROUPS):
            part = slice(group * rows, (group + 1) * rows)
            self.machine.launch(f"product {group}", functools.partial(self.take, part, x, weight))

    def take(self, part: slice, x: Tile, weight: Tile) -> None:
        self.values[part] += x.read()[part].float() @ weight.read().float()
        for tile in (x, weight):
            tile.whole.readers -= 1


class Machine:
    """One program."""

    def __init__(self, choose: Choose, program: int) -> None:
        self.choose, self.program = choose, program
        self.flights: list[tuple[str, int, Callable[[], None]]] = []  # what takes effect later
        self.begun: dict[str, int] = {}
        self.unfenced: set[Any] = set()
        self.unmet = False
        self.barriers: list[Barrier] = []
        self.ready: dict[str, Callable[[], bool]] = {}
        self.counts: dict[str, int] = {}
        self.turns: dict[str, threading.Semaphore] = {}
        self.error: BaseException | None = None

    def launch(self, kind: str, effect: Callable[[], None]) -> None:
        self.begun[kind] = self.begun.get(kind, 0) + 1
        self.flights.append((kind, self.begun[kind], effect))

    def in_flight(self, name: str) -> int:
        return sum(kind == name for kind, _, _ in self.flights)

    def instruction(self, name: str, ready: Callable[[], bool] = lambda: True) -> None:
        """The turn of an actor ends, until it is chosen again when it is ready."""
        me = threading.current_thread().name
        if me not in self.turns:
            return  # before the partitions begin
        self.ready[me] = ready
        if self.pass_on() != me:
            self.turns[me].acquire()
        if self.error:
            raise SystemExit
        self.counts[me] += 1

    def pass_on(self) -> str:
        """Whose turn it is now: who ends one makes events happen until one of them is the next turn of an actor."""
        me = threading.current_thread().name
        try:
            while self.ready or self.flights:
                if chosen := self.event():
                    if chosen != me:
                        self.turns[chosen].release()
                    return chosen
        except BaseException as error:
            self.error = self.error or error
        if self.error:
            for turn in self.turns.values():
                turn.release()
        return me

    def state(self) -> Any:
        flights = tuple(flight[:2] for flight in self.flights)
        return tuple(self.counts.values()), flights, tuple(barrier.state() for barrier in self.barriers)

    def run(self, partitions: Sequence[tuple[Callable[..., None], Sequence[Any]]]) -> None:
        """Events one after the other, until all actors are done."""
        names = [f"{index} {function}" for index, (function, _) in enumerate(partitions)]
        self.counts, self.turns = dict.fromkeys(names, 0), {name: threading.Semaphore(0) for name in names}
        self.ready = dict.fromkeys(names, lambda: True)
        threads = [
            threading.Thread(target=self.act, args=partition, name=name, daemon=True)
            for name, partition in zip(names, partitions)
        ]
        for thread in threads:
            thread.start()
        self.pass_on()
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error

    def act(self, function: Callable[..., None], args: Sequence[Any]) -> None:
        me = threading.current_thread().name
        self.turns[me].acquire()
        self.counts[me] += 1
        try:
            if self.error:
                return
            function(*args)
            if self.in_flight("send"):
                raise Fault("a program ends before its results are sent")
        except SystemExit:
            return
        except BaseException as error:
            self.error = self.error or error
        self.pass_on()

    def event(self) -> str:
        """One that may happen; the name of an actor, if it is that one's next turn."""
        # of each group's products the first alone may come
        order = reversed([*enumerate(self.flights)])
        flights = {kind if kind.startswith("product") else i: i for i, (kind, _, _) in order}
        actors = [name for name, ready in self.ready.items() if ready()]
        options = [*actors, *(self.flights[i][0] for i in flights.values())]
        if self.error:
            raise self.error
        if not options:
            raise Fault(f"nothing goes on: {', '.join(self.ready)} wait for ever")
        chosen = self.choose(options, self.state())
        if chosen < len(actors):
            del self.ready[actors[chosen]]
            return actors[chosen]
        self.flights.pop([*flights.values()][chosen - len(actors)])[2]()
        return ""


class Kernel:
    """A function of a kernel, or a kernel of a grid."""

    def __init__(self, language: Language, function: Callable[..., Any]) -> None:
        self.language, self.function = language, function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __str__(self) -> str:
        return self.function.__name__

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, **constants: Any) -> None:
            pointers = [Pointer(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
            for program in range(grid[0]):
                self.language.machine = Machine(self.language.choose, program)
                self.function(*pointers, **constants)

        return launch


class Language:
    """The modules of Gluon as a kernel file imports them, on machines whose events `choose` orders."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.machine: Any = None

    def modules(self) -> dict[str, Any]:
        name, of = "triton.experimental", types.SimpleNamespace
        layout = lambda *args, **kwargs: None  # noqa: E731
        language = of(constexpr=int, int64=torch.int64, float32=torch.float32, cdiv=lambda a, b: -(-a // b))
        language.NVMMASharedLayout = language.NVMMADistributedLayout = language.SliceLayout = layout
        language.num_warps, language.static_range = lambda: 4 * GROUPS, range
        language.program_id = lambda axis: torch.tensor(self.machine.program)
        language.allocate_shared_memory = self.allocate
        language.warp_specialize = lambda partitions, warps, registers: self.machine.run(partitions)
        language.zeros = lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype)
        language.arange = lambda start, end, layout: torch.arange(start, end)
        language.where, language.abs = torch.where, torch.abs
        language.load = lambda pointer, mask, other: pointer.load(mask, other)
        language.split, language.convert_layout = lambda pair: pair.unbind(-1), lambda values, layout: values
        language.barrier = self.barrier
        mbarrier = of(MBarrierLayout=layout, init=lambda barrier, count: barrier.init(count), wait=self.wait)
        mbarrier.expect, mbarrier.arrive = self.expect, self.arrive
        tma = of(async_load=self.fetch, async_store=self.send, store_wait=self.store_wait)
        hopper = of(mbarrier=mbarrier, tma=tma, fence_async_shared=self.fence)
        hopper.warpgroup_mma, hopper.warpgroup_mma_wait = self.multiply, self.multiply_wait
        gluon = of(jit=lambda function: Kernel(self, function), language=language)
        found = {name: of(gluon=gluon), f"{name}.gluon": gluon, f"{name}.gluon.language": language}
        found[f"{name}.gluon.language.nvidia"] = of(hopper=hopper)
        found[f"{name}.gluon.language.nvidia.hopper"] = hopper
        found[f"{name}.gluon.nvidia"] = of()
        found[f"{name}.gluon.nvidia.hopper"] = of(TensorDescriptor=Descriptor)
        return found

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Ring:
        ring = Ring(self.machine, dtype, shape)
        self.machine.barriers += ring.parts if dtype == torch.int64 else []
        return ring

    def wait(self, barrier: Barrier, phase: int) -> None:
        self.machine.instruction("wait", lambda: barrier.phases & 1 != phase)

    def expect(self, barrier: Barrier, size: int) -> None:
        self.machine.instruction("expect")
        barrier.missing += size
        barrier.arrive()

    def arrive(self, barrier: Barrier, count: int, pred: bool) -> None:
        self.machine.instruction("arrive")
        for _ in range(count if pred else 0):
            barrier.arrive()

    def fetch(self, descriptor: Descriptor, first: Sequence[Any], barrier: Barrier, tile: Tile) -> None:
        self.machine.instruction("fetch")
        if barrier in self.machine.unfenced:
            raise Fault("TMA does not see a barrier that was not fenced")
        assert tile.shape == descriptor.block_shape and int(first[-1]) * 2 % 16 == 0
        tile.write()

        def arrives() -> None:
            inside, within = descriptor.windows(first)
            tile.values.zero_()[within] = descriptor.tensor[inside]
            tile.whole.writers -= 1
            barrier.missing -= descriptor.block_type.nbytes
            barrier.settle()

        self.machine.launch("fetch", arrives)

    def send(self, descriptor: Descriptor, first: Sequence[Any], tile: Tile) -> None:
        self.machine.instruction("send")
        if tile.whole in self.machine.unfenced:
            raise Fault("TMA does not see a result that was not fenced")
        tile.whole.readers += 1

        def leaves() -> None:
            inside, within = descriptor.windows(first)
            descriptor.tensor[inside] = tile.read()[within]
            tile.whole.readers -= 1

        self.machine.launch("send", leaves)

    def store_wait(self, pending: int) -> None:
        self.machine.instruction("store_wait", lambda: self.machine.in_flight("send") <= pending)

    def fence(self) -> None:
        self.machine.unfenced.clear()

    def barrier(self) -> None:
        self.machine.unmet = False

    def multiply(self, x: Tile, weight: Tile, total: Any, is_async: bool) -> Products:
        self.machine.instruction("multiply")
        products = total if isinstance(total, Products) else Products(self.machine, total)
        products.add(x, weight)
        self.machine.unmet = True
        return products

    def multiply_wait(self, pending: int, deps: Sequence[Products]) -> Any:
        groups = [f"product {group}" for group in range(GROUPS)]
        self.machine.instruction("multiply_wait", lambda: all(self.machine.in_flight(g) <= pending for g in groups))
        found = deps if pending else [sums.values for sums in deps]
        return found[0] if len(deps) == 1 else found


_numbers = itertools.count()
_compiled = functools.cache(compile)


def load(path: Path, choose: Choose, changes: Iterable[tuple[str, str]] = ()) -> Any:
    """A kernel file whose kernels run on machines, perhaps with pieces of its source changed."""
    source = path.read_text()
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    module = types.ModuleType(f"{path.stem}_{next(_numbers)}")
    fakes = Language(choose).modules()
    before = {name: sys.modules.get(name) for name in fakes}
    sys.modules |= {**fakes, module.__name__: module}
    try:
        exec(_compiled(source, str(path), "exec"), vars(module))
    finally:
        for name, value in before.items():
            sys.modules.pop(name)
            if value is not None:
                sys.modules[name] = value
    return module
