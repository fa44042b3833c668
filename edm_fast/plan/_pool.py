"""The programs of an accelerated network: each serves one call at a time, and few are kept."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of a program's inputs, sorted by name

MAX_PROGRAMS = 4  # kept by one network, for as many input shapes or threads


class _Program(Protocol):
    def finish(self) -> None: ...


P = TypeVar("P", bound=_Program)


class Pool(Generic[P]):
    """Programs by the shapes of their inputs. Threads may use it at the same time."""

    def __init__(self) -> None:
        self.programs: collections.OrderedDict[Shapes, list[P]] = collections.OrderedDict()
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def program(self, shapes: Shapes, build: Callable[[Shapes], P]) -> Iterator[P]:
        """A program that is nobody else's inside the block."""
        program = self.take(shapes, build)
        try:
            yield program
        finally:
            self.give_back(shapes, program)

    def take(self, shapes: Shapes, build: Callable[[Shapes], P]) -> P:
        """A program that nobody uses, built if there is none."""
        with self.lock:
            if self.programs.get(shapes):
                return self.programs[shapes].pop()
        return build(shapes)

    def give_back(self, shapes: Shapes, program: P) -> None:
        """Put a program back; those used longest ago go where there are too many, their last calls finished."""
        dropped = []
        with self.lock:
            self.programs.setdefault(shapes, []).append(program)
            self.programs.move_to_end(shapes)
            while sum(map(len, self.programs.values())) > MAX_PROGRAMS:
                oldest = next(iter(self.programs))
                if self.programs[oldest]:
                    dropped.append(self.programs[oldest].pop())
                if not self.programs[oldest]:
                    del self.programs[oldest]
        for old in dropped:
            old.finish()
