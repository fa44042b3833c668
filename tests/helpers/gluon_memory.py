"""Memory of `gluon_machine`: barriers, tiles in shared memory, descriptors of tensors in boxes, pointers."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch


class Fault(Exception):
    """What must not happen on a GPU."""


class Barrier:
    """An mbarrier: a phase ends when `count` have arrived and all bytes are there."""

    def __init__(self, machine: Any) -> None:
        self.machine, self.count = machine, 0
        self.arrived = self.missing = self.phases = 0

    def init(self, count: int) -> None:
        self.count = count
        self.machine.unfenced.add(self)

    def arrive(self) -> None:
        self.arrived += 1
        if self.arrived > self.count:
            raise Fault("more arrivals at a barrier than it counts")
        self.settle()

    def settle(self) -> None:
        if self.missing < 0:
            raise Fault("more bytes came than a barrier expected")
        if self.arrived == self.count and self.missing == 0:
            self.arrived, self.phases = 0, self.phases + 1

    def state(self) -> tuple[int, ...]:
        return self.arrived, self.missing, self.phases


class Tile:
    """A part of shared memory; views of it are the same tile."""

    def __init__(self, machine: Any, values: torch.Tensor, whole: Tile | None = None) -> None:
        self.machine, self.values, self.whole = machine, values, whole or self
        self.dtype, self.shape = values.dtype, list(values.shape)
        if whole is None:
            self.writers = self.readers = 0

    def reshape(self, shape: Sequence[int]) -> Tile:
        return Tile(self.machine, self.values.view(*shape), self.whole)

    def permute(self, order: Sequence[int]) -> Tile:
        return Tile(self.machine, self.values.permute(*order), self.whole)

    def store(self, values: torch.Tensor) -> None:
        self.machine.instruction("store")
        if self.machine.unmet:
            raise Fault("a slot is written before all warps have multiplied")
        self.write()
        self.whole.writers -= 1
        self.machine.unfenced.add(self.whole)
        self.values.copy_(values)

    def write(self) -> None:
        if self.whole.writers or self.whole.readers:
            raise Fault("a slot in use is overwritten")
        self.whole.values.fill_(torch.nan)
        self.whole.writers += 1

    def read(self) -> torch.Tensor:
        if self.whole.writers or self.values.isnan().any():
            raise Fault("a slot is read before it is whole")
        return self.values


class Ring:
    """Tiles, or barriers, by an index."""

    def __init__(self, machine: Any, dtype: torch.dtype, shape: Sequence[int]) -> None:
        self.dtype, self.shape = dtype, list(shape)
        if dtype == torch.int64:
            self.parts: list[Any] = [Barrier(machine) for _ in range(shape[0])]
        else:
            self.parts = [Tile(machine, torch.full(shape[1:], torch.nan, dtype=dtype)) for _ in range(shape[0])]

    def index(self, i: Any) -> Any:
        return self.parts[int(i)]


class Descriptor:
    """Of a tensor in boxes, as a host makes it."""

    def __init__(self, base: torch.Tensor, shape: Any, strides: Any, block_shape: Sequence[int], layout: Any) -> None:
        self.tensor = base.as_strided(shape, strides)
        assert all(stride * base.element_size() % 16 == 0 for stride in strides[:-1]) and strides[-1] == 1
        self.block_shape, self.layout, self.dtype = list(block_shape), layout, base.dtype
        nbytes = base.element_size() * torch.Size(block_shape).numel()
        self.block_type = types.SimpleNamespace(shape=self.block_shape, nbytes=nbytes)

    def windows(self, first: Sequence[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Of the tensor and of the box: what both have."""
        inside, within = [], []
        for start, size, length in zip(map(int, first), self.block_shape, self.tensor.shape, strict=True):
            low, high = max(start, 0), max(min(start + size, length), max(start, 0))
            inside.append(slice(low, high))
            within.append(slice(low - start, high - start))
        return tuple(inside), tuple(within)


class Pointer:
    def __init__(self, tensor: torch.Tensor, offset: Any = 0) -> None:
        self.tensor, self.offset = tensor, offset

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.tensor, self.offset + offset)

    def load(self, mask: torch.Tensor, other: float) -> torch.Tensor:
        size = self.tensor.numel()
        flat = self.tensor.as_strided((size,), (1,))
        offset, mask = torch.broadcast_tensors(self.offset, mask)
        if mask.any() and not (0 <= int(offset[mask].min()) and int(offset[mask].max()) < size):
            raise Fault("a load outside of its tensor")
        return torch.where(mask, flat[offset.clamp(0, size - 1)], other)
