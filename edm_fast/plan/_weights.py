"""The network's tensors as the kernels of a GPU plan read them: cast, laid out, packed, each once for all programs."""

from __future__ import annotations

import dataclasses
from typing import Any
from weakref import WeakValueDictionary

import torch

from edm_fast.plan import _fused


@dataclasses.dataclass(eq=False)
class Made:
    """A tensor made of one of the network's, which is kept: another one must not be found at its address."""

    tensor: torch.Tensor
    of: torch.Tensor
    ready: torch.cuda.Event | None = None  # set on the stream where it was made

    def __post_init__(self) -> None:
        if self.tensor.is_cuda:
            self.ready = torch.cuda.Event()
            self.ready.record(torch.cuda.current_stream(self.tensor.device))

    def wait(self) -> None:
        """Use it on the current stream."""
        if self.ready is not None:
            self.ready.wait(torch.cuda.current_stream(self.tensor.device))


class Weights:
    """The network's tensors in the dtype and layout kernels read, for one program.

    `made` is shared by the programs of a network; what it holds is gone with the last of those that use it.
    """

    def __init__(self, dtype: torch.dtype, made: WeakValueDictionary[Any, Made]) -> None:
        self.dtype, self.made = dtype, made
        self.held: dict[Any, Made] = {}

    def __call__(self, tensor: torch.Tensor, layout: str = "") -> torch.Tensor:
        """layout: "" for that of torch's functions; others are those of `_fused.pack`."""
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), layout)
        if key not in self.held:
            found = self.made.get(key)
            if found is None:
                found = self.made[key] = Made(self._make(tensor, layout), tensor)
            found.wait()
            self.held[key] = found
        return self.held[key].tensor

    def _make(self, tensor: torch.Tensor, layout: str) -> torch.Tensor:
        if layout:
            return _fused.pack(tensor, layout, self.dtype)
        made = tensor.detach().to(self.dtype)
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made
