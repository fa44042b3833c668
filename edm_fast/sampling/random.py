"""One random stream per image, so that an image depends on its seed and not on the batch it is drawn in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError


class StackedRandomGenerator:
    """A torch.Generator per seed (modulo 2^32) on `device`; draws are per image, without the batch axis, then stacked.

    Row-major within an image whatever the memory format. The streams of CPU and CUDA devices differ.
    """

    def __init__(self, device: torch.device | str, seeds: Iterable[int]) -> None:
        self.generators = [torch.Generator(device).manual_seed(int(seed) % (1 << 32)) for seed in seeds]

    def _check(self, size: Sequence[int]) -> None:
        if len(size) == 0 or size[0] != len(self.generators):
            raise UserError(f"size is {tuple(size)}; expected a batch of {len(self.generators)}, one image per seed")

    def randn(self, size: Sequence[int], **kwargs: Any) -> Tensor:
        """Standard normals of shape `size` = (N, ...); kwargs go to torch.randn."""
        self._check(size)
        if not self.generators:
            return torch.empty(tuple(size), **kwargs)
        return torch.stack([torch.randn(tuple(size[1:]), generator=g, **kwargs) for g in self.generators])

    def randn_like(self, input: Tensor) -> Tensor:
        """Standard normals in the shape, dtype, layout and device of `input`."""
        return self.randn(input.shape, dtype=input.dtype, layout=input.layout, device=input.device)

    def randint(self, *args: Any, size: Sequence[int], **kwargs: Any) -> Tensor:
        """randint(high, size=...) or randint(low, high, size=...): integers from [low, high)."""
        self._check(size)
        if not self.generators:
            return torch.empty(tuple(size), **{"dtype": torch.int64, **kwargs})
        return torch.stack([torch.randint(*args, size=tuple(size[1:]), generator=g, **kwargs) for g in self.generators])
