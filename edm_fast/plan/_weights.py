"""The network's tensors as kernels read them: cast, laid out, packed, each once for all programs of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

from edm_fast.native import Algorithm


class Packing(NamedTuple):
    """The layout of a convolution's weight that an algorithm reads."""

    algorithm: Algorithm
    transposed: bool = False  # for the adjoint


@dataclasses.dataclass(eq=False)
class Prepared:
    """A tensor prepared from one of the network's, which it keeps: another one must not be found at its address."""

    tensor: torch.Tensor
    source: torch.Tensor
    ready: torch.cuda.Event | None = None  # set on the stream where it was made

    def __post_init__(self) -> None:
        if self.tensor.is_cuda:
            self.ready = torch.cuda.Event()
            self.ready.record(torch.cuda.current_stream(self.tensor.device))

    def wait(self) -> None:
        """Use it on the current stream."""
        if self.ready is not None:
            self.ready.wait(torch.cuda.current_stream(self.tensor.device))


def _name(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


class Weights:
    """prepare(tensor, layout) of the network's tensors, for one program.

    `shared` holds them for all programs of a network, until the last that uses one is gone.
    """

    def __init__(
        self,
        prepare: Callable[[torch.Tensor, Any], torch.Tensor],
        shared: WeakValueDictionary[Hashable, Prepared],
    ) -> None:
        self.prepare, self.shared = prepare, shared
        self.held: dict[tuple[Hashable, ...], Prepared] = {}
        self.used: set[Hashable] = set()  # since it was emptied
        self.sources: dict[Hashable, torch.Tensor] = {}  # of what was prepared for torch's functions

    def __call__(self, tensor: torch.Tensor, layout: Hashable = None) -> torch.Tensor:
        """layout: None for that of torch's functions. Of what was prepared for these, the network's own is laid out."""
        tensor = self.sources.get(_name(tensor), tensor)
        key = (*_name(tensor), layout)
        self.used.add(key)
        if key not in self.held:
            found = self.shared.get(key)
            if found is None:
                found = self.shared[key] = Prepared(self.prepare(tensor, layout), tensor)
            found.wait()
            self.held[key] = found
            if layout is None:
                self.sources[_name(found.tensor)] = tensor
        return self.held[key].tensor

    def drop_unused(self) -> None:
        """Let go of layouts that no call has read, such as those of candidates that were measured and not chosen."""
        self.held = {key: found for key, found in self.held.items() if key[-1] is None or key in self.used}
