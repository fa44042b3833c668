"""Captured: work on the GPU recorded once as a CUDA graph and replayed by one launch."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

WARMUPS = 2  # runs before recording: kernels are compiled, algorithms chosen and workspaces made in them

_capturing = threading.Lock()  # one capture at a time in a process


class Captured:
    """function() as a graph. What it reads and writes stays where it was while it was recorded; its result, too.

    The graph's memory is its own, so that graphs may run side by side. One graph runs on one stream at a time.
    """

    def __init__(self, function: Callable[[], torch.Tensor], device: torch.device) -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with _capturing, torch.cuda.device(device), torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                function()
            self.graph = torch.cuda.CUDAGraph()
            # other threads may go on calling CUDA meanwhile
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.result = function()
        torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self) -> torch.Tensor:
        self.graph.replay()
        return self.result
