"""Work on the GPU recorded once as CUDA graphs, each of them replayed by one launch: evaluations and sampling steps."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from edm_fast.plan._pool import Shapes

MAX_STEP_GRAPHS = 16  # of one program: a sampler needs two to four, however many its steps are
WARMUPS = 2  # runs before recording: kernels are compiled, algorithms chosen and workspaces made in them

_capturing = threading.Lock()  # one capture at a time in a process


class Captured:
    """function() as a graph. What it reads and writes stays where it was while it was recorded; its result, too.

    The graph's memory is its own, so that graphs may run side by side, or that of the graph `beside`, which then runs
    at other times and lives as long. One graph runs on one stream at a time.
    """

    stream: torch.cuda.Stream
    graph: torch.cuda.CUDAGraph

    def __init__(self, function: Callable[[], Any], device: torch.device, beside: Captured | None = None) -> None:
        # memory is used again on the stream where it was used before
        self.stream = stream = torch.cuda.Stream(device) if beside is None else beside.stream
        pool = None if beside is None else beside.graph.pool()
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with _capturing, torch.cuda.device(device), torch.cuda.stream(stream):
                for _ in range(WARMUPS):
                    function()
                self.graph = torch.cuda.CUDAGraph()
                # other threads may go on calling CUDA meanwhile
                with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self.result = function()
        finally:  # also after an error: what was launched before it still runs
            torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result


class StepGraph:
    """step(row, *tensors) as a graph, for rows of one length and tensors of one layout.

    A call copies its arguments to where the graph reads, and the results to fresh tensors, on the current stream.
    """

    def __init__(
        self,
        step: Callable[..., Sequence[torch.Tensor]],
        row: Sequence[float],
        tensors: Sequence[torch.Tensor | None],
        device: torch.device,
        capture: Callable[[Callable[[], Any]], Callable[[], Any]],
    ) -> None:
        self.row = torch.empty(len(row), dtype=torch.float64, device=device)
        self.tensors = [None if t is None else torch.empty_like(t) for t in tensors]
        self._load(row, tensors)  # for the runs before recording
        self.graph = capture(functools.partial(step, self.row, *self.tensors))

    def __call__(self, row: Sequence[float], tensors: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        self._load(row, tensors)
        return tuple(result.clone() for result in self.graph())

    def _load(self, row: Sequence[float], tensors: Sequence[torch.Tensor | None]) -> None:
        # pinned: the copy waits for nothing, and torch keeps the memory until it is made
        host = torch.tensor(row, dtype=torch.float64, device="cpu", pin_memory=self.row.is_cuda)
        self.row.copy_(host, non_blocking=True)
        for buffer, tensor in zip(self.tensors, tensors, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor)


class EvaluatedShapes:
    """The kinds of sampling steps seen of late, and the shapes each evaluates the network at.

    A kind that comes again only after MAX_STEP_GRAPHS others is forgotten and never recorded: its graph would be
    dropped before it is used.
    """

    def __init__(self) -> None:
        self.kinds: OrderedDict[Hashable, Shapes] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, kind: Hashable) -> Shapes | None:
        with self.lock:
            if kind in self.kinds:
                self.kinds.move_to_end(kind)
            return self.kinds.get(kind)

    def add(self, kind: Hashable, shapes: Shapes) -> None:
        with self.lock:
            self.kinds[kind] = shapes
            while len(self.kinds) > MAX_STEP_GRAPHS:
                self.kinds.popitem(last=False)
