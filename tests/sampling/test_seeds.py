import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edm_fast.errors import UserError
from edm_fast.sampling import StackedRandomGenerator, deal_missing, deal_seeds, edm_sampler, sample_seeds


def test_each_image_has_its_own_stream():
    many = StackedRandomGenerator("cpu", [7, -1, 2**32 + 7])
    one = StackedRandomGenerator("cpu", [2**32 - 1])
    a, b = many.randn([3, 2, 2]), one.randn([1, 2, 2])
    assert torch.equal(a[1:2], b)  # negative seeds wrap
    assert torch.equal(a[0], a[2])  # modulo 2^32
    assert [g.initial_seed() for g in many.generators] == [7, 2**32 - 1, 7]  # CUDA streams would use all 64 bits
    assert torch.equal(many.randint(10, size=[3])[1:2], one.randint(10, size=[1]))
    x = torch.empty(3, 4, 2, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    y = many.randn_like(x)
    assert y.dtype == torch.float64 and y.shape == x.shape
    assert torch.equal(y[1:2], one.randn_like(torch.empty(1, 4, 2, 2, dtype=torch.float64)))


def test_bounds_of_randint():
    draws = StackedRandomGenerator("cpu", range(50)).randint(3, 5, size=[50])
    assert set(draws.tolist()) == {3, 4}


def test_no_seeds():
    rnd = StackedRandomGenerator("cpu", [])
    assert rnd.randn([0, 3, 2, 2]).shape == (0, 3, 2, 2)
    assert rnd.randint(5, size=[0]).dtype == torch.int64


@pytest.mark.parametrize("size", [[3, 2], [], [1], 2, None, torch.Size([3]), "22"])
def test_the_batch_must_match_the_seeds(size):
    rnd = StackedRandomGenerator("cpu", [1, 2])
    for draw in (rnd.randn, lambda size: rnd.randint(5, size=size)):
        with pytest.raises(UserError, match="one image per seed"):
            draw(size)
    with pytest.raises(UserError, match="one image per seed"):
        rnd.randn_like(torch.empty(3, 2))


@pytest.mark.parametrize(
    "seeds", [range(3), (0, 1, 2), torch.arange(3), np.arange(3), iter([0, 1, 2]), (seed for seed in range(3))]
)
def test_seeds_of_any_kind(seeds):
    want = StackedRandomGenerator("cpu", [0, 1, 2]).randn((3, 2))
    assert torch.equal(StackedRandomGenerator("cpu", seeds).randn(torch.Size([3, 2])), want)


@pytest.mark.parametrize("seeds", [3, None, "0-3", [0.5], [None], torch.tensor(3), torch.rand(2)])
def test_what_is_no_seeds(seeds):
    with pytest.raises(UserError, match="one for each image"):
        StackedRandomGenerator("cpu", seeds)


@pytest.mark.parametrize("bounds", [(), (0,), (-3,), (5, 5), (6, 5), (1, 2, 3)])
def test_empty_ranges(bounds):
    """randint(net.label_dim) of a network without classes is one of them."""
    with pytest.raises(UserError, match="below high"):
        StackedRandomGenerator("cpu", [1, 2]).randint(*bounds, size=[2])


@pytest.mark.parametrize(("label_dim", "class_idx"), [(5, 5), (5, -1), (0, 0), (5, 1.0), (5, True), (5, "3")])
def test_classes_there_are_not(label_dim, class_idx):
    with pytest.raises(UserError, match="class "):
        sample_seeds(Probe(label_dim), edm_sampler, [1, 2], class_idx=class_idx, num_steps=2, sigma_min=0.1)


def test_batches_of_nothing():
    with pytest.raises(UserError, match="at least 1"):
        deal_seeds([1, 2], 0)


@given(st.integers(0, 300), st.integers(1, 70), st.integers(1, 9))
def test_dealing(n, max_batch, world):
    parts = deal_seeds(list(range(n)), max_batch, world)
    assert [seed for part in parts for seed in part] == list(range(n))
    assert len(parts) % world == 0
    sizes = [len(part) for part in parts]
    if n:
        assert max(sizes) <= max_batch and max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(0, 60), st.sets(st.integers(0, 60)), st.integers(1, 9), st.integers(1, 4))
def test_dealing_what_is_missing(n, finished, max_batch, world):
    parts, whole = deal_missing(range(n), finished, max_batch, world), deal_seeds(range(n), max_batch, world)
    assert set().union(*parts) >= set(range(n)) - finished
    assert all(part in whole and set(part) - finished for part in parts)


class Probe:
    """Returns its label in every pixel, so that the class drawn can be read off."""

    img_channels, img_resolution, sigma_min, sigma_max = 1, 4, 0.0, 100.0

    def __init__(self, label_dim):
        self.label_dim = label_dim

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def __call__(self, x, sigma, labels):
        value = labels.argmax(dim=1).double() if self.label_dim else torch.zeros(len(x))
        return value[:, None, None, None].expand_as(x)


def test_a_fixed_class_leaves_the_noise_as_it_was():
    seen = []

    def sampler(net, latents, labels, randn_like):
        seen.append((latents, labels, randn_like(latents.double())))
        return latents

    sample_seeds(Probe(5), sampler, [1, 2])
    sample_seeds(Probe(5), sampler, [1, 2], class_idx=3)
    sample_seeds(Probe(0), sampler, [1, 2])
    free, fixed, unlabelled = seen
    assert fixed[1].argmax(dim=1).tolist() == [3, 3] and fixed[1].dtype == torch.float32
    assert torch.equal(free[2], fixed[2]) and not torch.equal(free[2], unlabelled[2])
    assert torch.equal(free[0], unlabelled[0]) and unlabelled[1] is None


def test_sampled_classes_are_those_of_the_streams():
    rnd = StackedRandomGenerator("cpu", range(8))
    rnd.randn([8, 1, 4, 4])
    want = rnd.randint(5, size=[8])
    out = sample_seeds(Probe(5), edm_sampler, range(8), num_steps=3, sigma_min=1e-3)
    assert torch.equal(out.mean(dim=(1, 2, 3)).round().long(), want)
