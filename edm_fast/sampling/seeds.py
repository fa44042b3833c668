"""From seeds to images: one random stream per image, so that an image depends on its seed and not on its batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError


def deal_seeds(seeds: Sequence[int], max_batch: int, world: int = 1) -> list[list[int]]:
    """Cut seeds into B = (floor((n-1) / (max_batch world)) + 1) world parts, in order, sizes at most one apart.

    The larger parts come first; rank r takes parts r, r + world, ...; parts may be empty.
    """
    if max_batch < 1 or world < 1:
        raise UserError(f"max_batch is {max_batch} and world is {world}; expected integers of at least 1")
    count = ((len(seeds) - 1) // (max_batch * world) + 1) * world
    size, larger = divmod(len(seeds), max(count, 1))
    starts = [i * size + min(i, larger) for i in range(count + 1)]
    return [list(seeds[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]


def deal_missing(seeds: Sequence[int], finished: Set[int], max_batch: int, world: int = 1) -> list[list[int]]:
    """What is left of a run: the parts of `deal_seeds` with a seed that is not finished.

    They stay whole, as a batch of another size may round otherwise.
    """
    return [part for part in deal_seeds(seeds, max_batch, world) if not finished >= {*part}]


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Rows of the float32 identity matrix. classes (N,) int64 -> (N, label_dim)."""
    return torch.nn.functional.one_hot(classes, label_dim).to(torch.float32)


def check_class(net: Any, class_idx: int | None) -> None:
    """UserError unless the network has this class; None is always fine."""
    if class_idx is None:
        return
    if isinstance(class_idx, bool) or not hasattr(class_idx, "__index__"):
        raise UserError(f"class {str(class_idx)[:80]!r}; expected an integer or None")
    if not net.label_dim:
        raise UserError(f"class {class_idx}: the network is unconditional; expected no class")
    if not 0 <= int(class_idx) < net.label_dim:
        raise UserError(
            f"class {class_idx}: the network has {net.label_dim} classes; expected 0 to {net.label_dim - 1}"
        )


def seed_inputs(
    net: Any, seeds: Sequence[int], class_idx: int | None = None, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
    """(latents (N, C, R, R) float32, class_labels (N, label_dim) or None, randn_like) for a sampler.

    Each seed's stream gives the latents, then a class if the network has any (drawn also where class_idx replaces it),
    then the sampler's noise.
    """
    check_class(net, class_idx)
    rnd = StackedRandomGenerator(device, seeds)
    latents = rnd.randn([len(seeds), net.img_channels, net.img_resolution, net.img_resolution], device=device)
    labels = None
    if net.label_dim:
        classes = rnd.randint(net.label_dim, size=[len(seeds)], device=device)
        labels = one_hot(classes if class_idx is None else torch.full_like(classes, class_idx), net.label_dim)
    return latents, labels, rnd.randn_like


def sample_seeds(
    net: Any,
    sampler: Callable[..., Tensor],
    seeds: Sequence[int],
    class_idx: int | None = None,
    device: torch.device | str = "cpu",
    **sampler_kwargs: Any,
) -> Tensor:
    """The images of these seeds in one batch, (N, C, R, R) float64, not clipped."""
    latents, labels, randn_like = seed_inputs(net, seeds, class_idx, device)
    with torch.no_grad():
        return sampler(net, latents, labels, randn_like=randn_like, **sampler_kwargs)


class StackedRandomGenerator:
    """A torch.Generator per seed (modulo 2^32) on `device`; draws are per image, without the batch axis, then stacked.

    Row-major within an image whatever the memory format. The streams of CPU and CUDA devices differ.
    """

    def __init__(self, device: torch.device | str, seeds: Iterable[int]) -> None:
        self.generators = []
        try:
            numbers = [operator.index(seed) for seed in seeds]
        except TypeError:
            raise UserError(f"seeds is {str(seeds)[:80]!r}; expected integers, one for each image") from None
        for number in numbers:
            generator = torch.Generator(device)
            generator.manual_seed(number % 2**32)
            self.generators.append(generator)

    def _drawn(
        self, size: Sequence[int], draw: Callable[..., Tensor], empty: torch.dtype | None, kwargs: Any
    ) -> Tensor:
        """draw(shape of an image, generator=...) of each stream, stacked; `empty` is the type of no images."""
        n = len(self.generators)
        if not isinstance(size, Sequence) or len(size) == 0 or size[0] != n:
            raise UserError(f"size is {size!r}; expected a sequence whose first number is {n}, one image per seed")
        if not n:
            return torch.empty(tuple(size), **{"dtype": empty, **kwargs})
        return torch.stack([draw(tuple(size[1:]), generator=g, **kwargs) for g in self.generators])

    def randn(self, size: Sequence[int], **kwargs: Any) -> Tensor:
        """Standard normals of shape `size` = (N, ...); kwargs go to torch.randn."""
        return self._drawn(size, torch.randn, None, kwargs)

    def randn_like(self, input: Tensor) -> Tensor:
        """Standard normals in the shape, dtype, layout and device of `input`."""
        like = {name: getattr(input, name) for name in ("dtype", "layout", "device")}
        return self.randn(input.shape, **like)

    def randint(self, *bounds: int, size: Sequence[int], **kwargs: Any) -> Tensor:
        """randint(high, size=...) or randint(low, high, size=...): integers from [low, high)."""
        low, high = bounds if len(bounds) == 2 else (0, *bounds) if len(bounds) == 1 else (0, 0)
        if not low < high:
            raise UserError(f"randint of {bounds}; expected high, or low and high, low (0 if left out) below high")
        return self._drawn(size, functools.partial(torch.randint, low, high), torch.int64, kwargs)
