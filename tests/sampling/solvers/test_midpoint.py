"""The explicit midpoint rule: evaluations, second order, and its relatives."""

import pytest
import torch

from edm_fast.sampling import ablation_sampler, sample
from helpers.convergence import gauss, latents, mixture, order_of


def test_evaluations_are_at_the_start_and_in_the_middle():
    net = gauss()
    sample(net, latents(), solver="midpoint", levels=[80.0, 10.0, 2.0, 0.0])
    assert net.sigmas == [80, 45, 10, 6, 2]


@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_second_order(grid):
    assert order_of("midpoint", mixture(), levels=grid) == pytest.approx(2, abs=0.25)  # third on a Gaussian


def test_it_is_alpha_one_half_of_the_ablations():
    net = gauss()
    a = sample(net, latents(), solver="midpoint", num_steps=9)
    b = ablation_sampler(net, latents(), num_steps=9, alpha=0.5, sigma_min=0.002, sigma_max=80)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
