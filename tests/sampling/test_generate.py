"""edm_fast.generate: images with their seeds, in the batches of the command line."""

import itertools
import pickle

import numpy as np
import pytest
import torch

import edm_fast
from edm_fast import accelerate, native
from edm_fast.errors import UserError
from edm_fast.sampling import Guidance, SeedSampler, deal_seeds, generate, sample, sample_seeds, seed_inputs
from helpers.convergence import gauss
from helpers.tiny_networks import tiny

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
SETTINGS = {"solver": "ipndm", "nfe": 4}


def test_the_images_of_the_seeds():
    net = tiny(label_dim=4)
    images = edm_fast.generate(net, range(5, 12), batch=3, guidance=Guidance(2), **SETTINGS)
    assert len(images) == 7
    found = [*images]
    assert [seed for seed, _ in found] == [*range(5, 12)] and found[0][1].shape == (3, 8, 8)
    parts = deal_seeds(range(5, 12), 3)
    want = torch.cat([sample_seeds(net, sample, part, guidance=Guidance(2), **SETTINGS) for part in parts])
    assert torch.equal(torch.stack([image for _, image in found]), want)
    [(_, third)] = generate(net, [7], class_idx=3, **SETTINGS)
    latents, labels, randn_like = seed_inputs(net, [7], 3)
    assert labels.tolist() == [[0, 0, 0, 1]]
    assert torch.equal(third, sample(net, latents, labels, randn_like, **SETTINGS)[0])


def test_nothing_is_drawn_before_it_is_asked_for_and_gradients_stay_on():
    net = gauss()
    images = generate(net, range(6), batch=2, num_steps=3)
    assert not net.sigmas
    for count, _ in enumerate(itertools.islice(images, 3)):
        assert len(net.sigmas) == 5 * (1 + count // 2) and torch.is_grad_enabled()


def test_what_is_left_of_a_run_is_shared_by_processes():
    settings = {"batch": 2, "world": 2, "num_steps": 1}
    whole = dict(generate(gauss(), range(9), **{**settings, "world": 1}))
    left = [generate(gauss(), range(9), rank=rank, finished=[0, 5, 6], **settings) for rank in (0, 1)]
    counts, shares = [*map(len, left)], [[*images] for images in left]
    # dealt as 0-1, 2-3, 4-5, 6, 7, 8
    assert [[seed for seed, _ in share] for share in shares] == [[1, 4, 8], [2, 3, 7]] and counts == [3, 3]
    assert all(torch.equal(image, whole[seed]) for share in shares for seed, image in share)


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_native)])
def test_a_sampler_of_seeds_can_be_sent_to_other_processes(fast):
    net = tiny(label_dim=4)
    sampler = SeedSampler(accelerate(net) if fast else net, guidance=Guidance(2), **SETTINGS)
    want = sampler([3, 5])
    [(_, first), _] = generate(sampler.net, [3, 5], guidance=Guidance(2), **SETTINGS)
    assert torch.equal(first, want[0])
    assert torch.equal(pickle.loads(pickle.dumps(sampler))(np.array([3, 5])), want)


def test_a_callback_knows_the_seeds_of_its_batch():
    found = []

    def watch(seeds, i, sigma, x, denoised):
        found.append((seeds, i))
        return x + 1

    plain, changed = (dict(generate(gauss(), [4, 1, 3], batch=2, num_steps=2, callback=c)) for c in (None, watch))
    assert found == [([4, 1], 0), ([4, 1], 1), ([3], 0), ([3], 1)]
    assert all((changed[seed] - plain[seed]).item() > 0.9 for seed in plain)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 5}, "seeds is '5'; expected integers"),
        ({"seeds": [1.5]}, "expected integers"),
        ({"class_idx": 1}, "unconditional"),
        ({"batch": 0}, "batch is 0"),
        ({"rank": 2, "world": 2}, "rank is 2 and world is 2"),
        ({"guidance": 2.0}, "type float"),
        ({"solver": "huen"}, "near names: heun"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_drawn(settings, words):
    with pytest.raises(UserError, match=words):
        generate(gauss(), **{"seeds": [1], **settings})
