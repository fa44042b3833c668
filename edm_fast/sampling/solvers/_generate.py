"""edm_fast.generate: from seeds to images, batch by batch; SeedSampler: one batch, on any process."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, _guidance
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.loop import Callback, Solver
from edm_fast.sampling.seeds import check_class, deal_missing, sample_seeds
from edm_fast.sampling.solvers._sample import sample


class SeedSampler:
    """sampler(seeds) draws the images of these seeds in one batch: (N, C, R, R) float64 in [-1, 1], not clipped.

    Arguments as those of `generate`. It can be pickled with its network, accelerated or not, so that frameworks that
    share data among machines can send it to their workers. UserError for bad settings, at once.
    """

    def __init__(
        self,
        net: Any,
        class_idx: int | None = None,
        *,
        device: torch.device | str | None = None,
        guidance: Guidance | None = None,
        **settings: Any,
    ) -> None:
        _arguments.check_network(net)
        check_class(net, class_idx)
        _guidance.check(guidance, net)
        self.net, self.class_idx, self.guidance = net, class_idx, guidance
        self.solver: Solver = sample.solver(net, None, **settings)  # type: ignore[attr-defined]
        tensors = net.parameters() if isinstance(net, torch.nn.Module) else []
        self.device = device or next((tensor.device for tensor in tensors), "cpu")

    def __call__(self, seeds: Sequence[int], callback: Callback | None = None) -> Tensor:
        """callback: as that of `edm_fast.sampling.run`."""
        options: dict[str, Any] = {"solver": self.solver, "guidance": self.guidance, "callback": callback}
        return sample_seeds(self.net, sample, seeds, self.class_idx, self.device, **options)


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
    finished: seeds to leave out. The others have the same bits without it: batches stay whole, see `deal_missing`.
    rank, world: of several processes that share the seeds, which one this is, and how many there are.
    The length of the iterator is the number of images that it has in all. UserError for bad settings, at once.
    """
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise UserError(f"seeds is {str(seeds)[:80]!r}; expected integers, one for each image") from None
    sampler = SeedSampler(net, class_idx, device=device, guidance=guidance, **settings)
    if not 0 <= rank < world:
        raise UserError(f"rank is {rank} and world is {world}; expected 0 <= rank < world")
    done = {*finished}
    parts = deal_missing(numbers, done, _arguments.steps(batch, "batch"), world)[rank::world]

    def draw(part: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        watch = None if callback is None else functools.partial(callback, part)
        return (pair for pair in zip(part, sampler(part, watch), strict=True) if pair[0] not in done)

    return Images(sum(seed not in done for part in parts for seed in part), map(draw, parts))


class Images(Iterator[tuple[int, Tensor]]):
    """What is drawn in batches, one (seed, image) at a time."""

    def __init__(self, count: int, batches: Iterable[Iterable[tuple[int, Tensor]]]) -> None:
        self._count = count
        self._pairs = itertools.chain.from_iterable(batches)

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> tuple[int, Tensor]:
        return next(self._pairs)
