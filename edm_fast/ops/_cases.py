"""A row of an op's case table: a name, and a builder of the arguments of one call.

builder(make) -> (args, kwargs), where make(*shape, layout=..., scale=...) draws a tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., torch.Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]
LAYOUTS = ("contiguous", "channels_last", "strided")


@dataclasses.dataclass(frozen=True)
class Case:
    """`use`: "odd" for tests alone; "real" for layer shapes of the published networks, which `verify` measures and
    benchmarks time; "small" for one quick call, shaped like a layer but smaller; "large" for layers channels last at a
    batch that fills a GPU."""

    name: str
    build: Callable[[Make], Call]
    use: str = "odd"

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Call:
        """Arguments for one call; the same numbers for every dtype and device, up to rounding."""
        generator = torch.Generator().manual_seed(seed)

        def make(*shape: int, layout: str = "contiguous", scale: float = 1.0) -> torch.Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return laid_out(values.to(device=device, dtype=dtype), layout)

        return self.build(make)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x in a memory layout: "contiguous", "channels_last", or "strided" (every second element of a wider tensor)."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "strided":
        wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
        wide[..., ::2] = x
        return wide[..., ::2]
    return x
