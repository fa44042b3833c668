"""The index stream: skipping, dealing to readers, coverage, bad arguments."""

from itertools import islice

import numpy as np
import pytest

from edm_fast.data import InfiniteSampler
from edm_fast.data.index_stream import _BLOCK
from edm_fast.errors import UserError


def take(count, **kwargs):
    return list(islice(InfiniteSampler(range(kwargs.pop("size", 11)), **kwargs), count))


@pytest.mark.parametrize("start", [0, 1, 30, 31, _BLOCK - 1, _BLOCK + 5, 2 * _BLOCK + 1])
def test_start_skips_places(start):
    whole = take(start + 40, seed=4)
    assert take(40, seed=4, start=start) == whole[start:]


@pytest.mark.parametrize("start", [0, 7, 12])
def test_readers_share_one_stream(start):
    whole = take(60, seed=2, size=7)
    parts = [take(12, seed=2, size=7, rank=r, num_replicas=3, start=start) for r in range(3)]
    dealt = {r: [whole[k] for k in range(start, 60) if k % 3 == r][:12] for r in range(3)}
    assert parts == [dealt[0], dealt[1], dealt[2]]


def test_blocks_equal_single_draws():
    """The published order draws one random number at a time."""
    n, window, seed = 10, 5, 3
    order, random = np.arange(n), np.random.RandomState(seed)
    random.shuffle(order)
    want = []
    for k in range(_BLOCK + 100):
        i = k % n
        want.append(int(order[i]))
        j = (i - random.randint(window)) % n
        order[i], order[j] = order[j], order[i]
    assert take(len(want), size=n, seed=seed) == want


def test_every_index_keeps_coming():
    counts = np.bincount(take(11 * 200, seed=1), minlength=11)
    assert counts.min() > 150 and counts.max() < 250


@pytest.mark.parametrize(
    "kwargs", [{"size": 0}, {"rank": 2, "num_replicas": 2}, {"window_size": 1.5}, {"seed": -1}, {"seed": 2**32}]
)
def test_bad_arguments(kwargs):
    with pytest.raises(UserError):
        take(1, **kwargs)
