"""From seeds to images: one random stream per image, so that an image depends on its seed and not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError


def deal_seeds(seeds: Sequence[int], max_batch: int, world: int = 1) -> list[list[int]]:
    """Cut seeds into B = (floor((n-1) / (max_batch world)) + 1) world parts, in order, sizes at most one apart.

    The larger parts come first; rank r takes parts r, r + world, ...; parts may be empty.
    """
    count = ((len(seeds) - 1) // (max_batch * world) + 1) * world
    size, larger = divmod(len(seeds), max(count, 1))
    starts = [i * size + min(i, larger) for i in range(count + 1)]
    return [list(seeds[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Rows of the float32 identity matrix. classes (N,) int64 -> (N, label_dim)."""
    return torch.nn.functional.one_hot(classes, label_dim).to(torch.float32)


def sample_seeds(
    net: Any,
    sampler: Callable[..., Tensor],
    seeds: Sequence[int],
    class_idx: int | None = None,
    device: torch.device | str = "cpu",
    **sampler_kwargs: Any,
) -> Tensor:
    """The images of these seeds, (N, C, R, R) float64, not clipped.

    Each seed's stream gives the latents (float32), then a class if the network has any (drawn also where class_idx
    replaces it), then the sampler's noise.
    """
    rnd = StackedRandomGenerator(device, seeds)
    latents = rnd.randn([len(seeds), net.img_channels, net.img_resolution, net.img_resolution], device=device)
    labels = None
    if net.label_dim:
        classes = rnd.randint(net.label_dim, size=[len(seeds)], device=device)
        labels = one_hot(classes if class_idx is None else torch.full_like(classes, class_idx), net.label_dim)
    with torch.no_grad():
        return sampler(net, latents, labels, randn_like=rnd.randn_like, **sampler_kwargs)


class StackedRandomGenerator:
    """A torch.Generator per seed (modulo 2^32) on `device`; draws are per image, without the batch axis, then stacked.

    Row-major within an image whatever the memory format. The streams of CPU and CUDA devices differ.
    """

    def __init__(self, device: torch.device | str, seeds: Iterable[int]) -> None:
        self.generators = []
        for seed in seeds:
            generator = torch.Generator(device)
            generator.manual_seed(int(seed) % 2**32)
            self.generators.append(generator)

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
        like = {name: getattr(input, name) for name in ("dtype", "layout", "device")}
        return self.randn(input.shape, **like)

    def randint(self, *bounds: int, size: Sequence[int], **kwargs: Any) -> Tensor:
        """randint(high, size=...) or randint(low, high, size=...): integers from [low, high)."""
        low, high = bounds if len(bounds) == 2 else (0, *bounds)
        self._check(size)
        if not self.generators:
            return torch.empty(tuple(size), **{"dtype": torch.int64, **kwargs})
        return torch.stack([torch.randint(low, high, tuple(size[1:]), generator=g, **kwargs) for g in self.generators])
