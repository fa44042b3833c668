"""edm_fast.generate: images with their seeds, in the batches of the command line."""

import itertools

import pytest
import torch

import edm_fast
from edm_fast.errors import UserError
from edm_fast.sampling import Guidance, deal_seeds, generate, sample, sample_seeds, seed_inputs
from helpers.convergence import gauss
from helpers.tiny_networks import tiny

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
    settings = {"finished": [0, 5], "batch": 2, "world": 2, "num_steps": 1}
    shares = [[seed for seed, _ in generate(gauss(), range(9), rank=rank, **settings)] for rank in (0, 1)]
    assert shares == [[2, 3, 7, 8], [4, 6, 1]] or sorted(sum(shares, [])) == [1, 2, 3, 4, 6, 7, 8]
    assert [len(generate(gauss(), range(9), rank=rank, **settings)) for rank in (0, 1)] == [*map(len, shares)]


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
