"""edm_fast.generate: from seeds to images, batch by batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, _guidance
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.seeds import check_class, deal_missing, sample_seeds
from edm_fast.sampling.solvers._sample import sample


def generate(
    net: Any,
    seeds: Iterable[int],
    class_idx: int | None = None,
    *,
    batch: int = 64,
    device: torch.device | str | None = None,
    guidance: Guidance | None = None,
    callback: Callable[[Sequence[int], int, float, Tensor, Tensor], Tensor | None] | None = None,
    finished: Collection[int] = (),
    rank: int = 0,
    world: int = 1,
    **settings: Any,
) -> Images:
    """Draw an image for each seed: an iterator of (seed, image (C, R, R) float64 in [-1, 1], not clipped).

        for seed, image in edm_fast.generate(net, range(64), solver="ipndm", nfe=9): ...

    An image depends on its seed alone; the seed also draws the class, unless class_idx is one. At most `batch` images
    are drawn at a time, when the first of them is asked for. device: None is that of the network.
    settings, guidance: those of `edm_fast.sample`.
    callback(seeds, i, sigma, x, denoised) after step i of a batch of seeds, see `edm_fast.sampling.run`.
    finished: seeds to leave out; the others are drawn in the batches they would have been in, see `deal_missing`.
    rank, world: of several processes that share the seeds, which one this is, and how many there are.
    The length of the iterator is the number of images that it has in all. UserError for bad settings, at once.
    """
    _arguments.check_network(net)
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise UserError(f"seeds is {str(seeds)[:80]!r}; expected integers, one for each image") from None
    check_class(net, class_idx)
    _guidance.check(guidance, net)
    if not 0 <= rank < world:
        raise UserError(f"rank is {rank} and world is {world}; expected 0 <= rank < world")
    solver = sample.solver(net, None, **settings)  # type: ignore[attr-defined]
    parts = deal_missing(numbers, {*finished}, _arguments.steps(batch, "batch"), world)[rank::world]
    if device is None:
        tensors = net.parameters() if isinstance(net, torch.nn.Module) else []
        device = next((tensor.device for tensor in tensors), "cpu")

    def draw(part: Sequence[int]) -> Tensor:
        watch = None if callback is None else functools.partial(callback, part)
        return sample_seeds(net, sample, part, class_idx, device, solver=solver, guidance=guidance, callback=watch)

    return Images(parts, draw)


class Images(Iterator[tuple[int, Tensor]]):
    """What is drawn of parts of seeds, one (seed, image) at a time."""

    def __init__(self, parts: Sequence[Sequence[int]], draw: Callable[[Sequence[int]], Tensor]) -> None:
        self._count = sum(map(len, parts))
        self._pairs = (pair for part in parts for pair in zip(part, draw(part), strict=True))

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> tuple[int, Tensor]:
        return next(self._pairs)
