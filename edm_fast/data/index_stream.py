"""The endless streams of data set indices that training reads: EDM's, a shuffle that goes on while it is read, and
EDM2's, a shuffle for each pass.

EDM: order = 0 ... n-1, shuffled by RandomState(seed). Position k = 0, 1, 2, ... yields order[i], i = k mod n, to rank
k mod num_replicas; then order[i] trades places with order[(i - r) mod n], r uniform in 0 ... window-1, so that passes
over the data differ but an image seldom returns soon. Every rank does the same arithmetic, so ranks need not talk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import torch

from edm_fast.errors import UserError


def mixed_seed(*numbers: int) -> int:
    """A seed of several integers, as EDM2 has it: CPython's hash of the tuple, modulo 2^31."""
    return hash(numbers) % (1 << 31)


_BLOCK = 1 << 12  # random numbers drawn at a time; a block equals that many single draws


def _check_readers(dataset: Sized, rank: int, num_replicas: int) -> None:
    if len(dataset) < 1:
        raise UserError("the data set is empty; expected at least one image")
    if not 0 <= rank < num_replicas:
        raise UserError(f"rank {rank} of {num_replicas} readers; expected 0 <= rank < num_replicas")


class InfiniteSampler(torch.utils.data.Sampler[int]):
    """Endless indices for one of `num_replicas` readers; `start` skips that many positions of the common stream."""

    def __init__(
        self,
        dataset: Sized,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        window_size: float = 0.5,
        start: int = 0,
    ) -> None:
        _check_readers(dataset, rank, num_replicas)
        if not 0 <= window_size <= 1:
            raise UserError(f"window_size {window_size}; expected a number from 0 to 1")
        if not 0 <= seed < 1 << 32:
            raise UserError(f"seed {seed}; expected an integer from 0 to {(1 << 32) - 1}")
        self.size = len(dataset)
        self.rank = rank
        self.num_replicas = num_replicas
        self.shuffle = shuffle
        self.seed = seed
        self.window_size = window_size
        self.start = start

    def __iter__(self) -> Iterator[int]:
        n, replicas, start = self.size, self.num_replicas, self.start
        order = np.arange(n)
        random, window = np.random.RandomState(self.seed), 0
        if self.shuffle:
            random.shuffle(order)
            window = int(np.rint(n * self.window_size))
        indices = order.tolist()  # lists swap faster than arrays
        k = 0
        while True:
            offsets = random.randint(window, size=_BLOCK).tolist() if window >= 2 else [0] * _BLOCK
            for offset in offsets:
                i = k % n
                if k >= start and k % replicas == self.rank:
                    yield indices[i]
                j = (i - offset) % n
                indices[i], indices[j] = indices[j], indices[i]
                k += 1


class EpochSampler(torch.utils.data.Sampler[int]):
    """Endless indices: pass k over the data is a shuffle by mixed_seed(seed, k), whatever came before.

    Position `start_idx` + rank of the common stream is the first, then each num_replicas-th.
    """

    def __init__(
        self,
        dataset: Sized,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        start_idx: int = 0,
    ) -> None:
        _check_readers(dataset, rank, num_replicas)
        self.size = len(dataset)
        self.rank = rank
        self.num_replicas = num_replicas
        self.shuffle = shuffle
        self.seed = seed
        self.start_idx = start_idx

    def __iter__(self) -> Iterator[int]:
        position, current, order = self.start_idx + self.rank, -1, np.arange(self.size)
        while True:
            epoch, place = divmod(position, self.size)
            if epoch != current:
                current, order = epoch, np.arange(self.size)
                if self.shuffle:
                    np.random.RandomState(mixed_seed(self.seed, epoch)).shuffle(order)
            yield int(order[place])
            position += self.num_replicas
