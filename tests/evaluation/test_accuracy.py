"""Errors in levels of 255 per image."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.evaluation.accuracy import converged, draw, error_levels
from edm_fast.sampling import edm_sampler
from helpers.tiny_networks import tiny


def test_levels_of_255():
    truth = torch.zeros(3, 1, 2, 2)
    images = truth.clone()
    images[1, 0, 0, 0] = 2 / 255  # one level in one of four pixels
    images[2] = 7  # clipped to 1
    assert torch.allclose(error_levels(images, truth), torch.tensor([0.0, 0.5, 127.5], dtype=torch.float64))
    images[0] = torch.nan
    with pytest.raises(UserError, match="finite"):
        error_levels(images, truth)


def test_the_solution_of_each_seed():
    net = tiny()
    truth = converged(net, [3, 4, 5], steps=4, batch=2)
    assert torch.allclose(truth, draw(net, edm_sampler, [3, 4, 5], num_steps=4), atol=1e-5)
    assert not torch.allclose(truth[0], truth[1], atol=1e-2)
