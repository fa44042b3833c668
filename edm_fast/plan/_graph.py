"""Work on the GPU recorded once as CUDA graphs, each of them replayed by one launch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

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


class Replay:
    """function(numbers, *tensors) as a graph, for as many numbers and for tensors that lie as those given.

    A call copies what it is given to where the graph reads, and the results to fresh tensors, on the current stream.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[torch.Tensor]],
        numbers: Sequence[float],
        tensors: Sequence[torch.Tensor | None],
        device: torch.device,
        capture: Callable[[Callable[[], Any]], Callable[[], Any]],
    ) -> None:
        self.numbers = torch.empty(len(numbers), dtype=torch.float64, device=device)
        self.tensors = [None if t is None else torch.empty_like(t) for t in tensors]
        self._load(numbers, tensors)  # for the runs before recording
        self.graph = capture(functools.partial(function, self.numbers, *self.tensors))

    def __call__(self, numbers: Sequence[float], tensors: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        self._load(numbers, tensors)
        return tuple(result.clone() for result in self.graph())

    def _load(self, numbers: Sequence[float], tensors: Sequence[torch.Tensor | None]) -> None:
        # pinned: the copy waits for nothing, and torch keeps the memory until it is made
        host = torch.tensor(numbers, dtype=torch.float64, device="cpu", pin_memory=self.numbers.is_cuda)
        self.numbers.copy_(host, non_blocking=True)
        for buffer, tensor in zip(self.tensors, tensors, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor)
