"""The arena: what is alive at the same time does not overlap."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_fast.plan._memory import ALIGNMENT, Place, Region, allocate

LIVES = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 12), st.integers(0, 12)), max_size=25)


@settings(max_examples=200)
@given(LIVES)
def test_what_is_alive_at_once_lies_apart(lives):
    regions = [Region(size) for size, _, _ in lives]
    for region, (_, first, last) in zip(regions, lives):
        region.use(first)
        region.use(last)
    total = allocate(regions)
    for i, one in enumerate(regions):
        assert one.offset % ALIGNMENT == 0 and 0 <= one.offset and one.offset + one.size <= total
        for other in regions[:i]:
            if one.first <= other.last and other.first <= one.last:
                assert one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
    assert total <= sum(-(-region.size // ALIGNMENT) * ALIGNMENT for region in regions)


def test_what_is_gone_makes_room():
    one, other = Region(100), Region(100)
    one.use(0)
    other.use(1)
    assert allocate([one, other]) == 128 and one.offset == other.offset == 0


def test_images_lie_channels_last_in_wider_ones():
    region = Region(2 * 3 * 3 * 8)
    region.use(0)
    arena = torch.arange(allocate([region])).float()
    whole, part = Place((2, 8, 3, 3), region, 0, 8).view(arena), Place((2, 5, 3, 3), region, 2, 8).view(arena)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(part, whole[:, 2:7])
