"""Where the tensors of a plan lie: one arena of floats, in which what is alive at the same time does not overlap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

ALIGNMENT = 32  # floats: two cache lines


@dataclasses.dataclass(eq=False)
class Region:
    """A stretch of the arena, in use from step `first` to step `last`, both included."""

    size: int
    first: int = -1
    last: int = -1
    offset: int = -1

    def use(self, step: int) -> None:
        self.first = step if self.first < 0 else min(self.first, step)
        self.last = max(self.last, step)


@dataclasses.dataclass(eq=False)
class Place:
    """A tensor in a region. Images (N, C, H, W) lie channels last, `pitch` floats from pixel to pixel."""

    shape: tuple[int, ...]
    region: Region
    start: int = 0
    pitch: int = 0

    def view(self, arena: torch.Tensor) -> torch.Tensor:
        if len(self.shape) != 4:
            return arena[self.region.offset :][: self.region.size].view(self.shape)
        _, _, h, w = self.shape
        strides = (h * w * self.pitch, 1, w * self.pitch, self.pitch)
        return arena.as_strided(self.shape, strides, self.region.offset + self.start)


def allocate(regions: Sequence[Region]) -> int:
    """Set the offset of every region; the size of the arena. Largest first, each as low as it fits."""
    placed: list[Region] = []
    total = 0
    for region in sorted(regions, key=lambda r: (-r.size, r.first)):
        low = 0
        for other in sorted(placed, key=lambda r: r.offset):
            if other.last < region.first or region.last < other.first:
                continue
            if other.offset - low >= region.size:
                break
            low = max(low, _aligned(other.offset + other.size))
        region.offset = low
        placed.append(region)
        total = max(total, _aligned(low + region.size))
    return total


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
