"""Euler, Heun and DPM-Solver-2: orders, and what they are equal to."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import edm_sampler, sample
from helpers.convergence import gauss, latents, order_of


@pytest.mark.parametrize("grid", ["karras", "logsnr"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpm2", 2)])
def test_order(solver, order, grid):
    assert order_of(solver, levels=grid) == pytest.approx(order, abs=0.25)


def test_any_r_is_of_second_order():
    assert order_of("dpm2", r=0.4) == pytest.approx(2, abs=0.25)
    for r in (0, -1, 1.5):
        with pytest.raises(UserError, match="r is"):
            sample(gauss(), latents(), solver="dpm2", r=r)


def test_heun_has_the_bits_of_the_edm_sampler():
    assert torch.equal(sample(gauss(), latents()), edm_sampler(gauss(), latents()))


def test_euler_into_0_ends_at_the_denoised_image():
    a = sample(gauss(), latents(), solver="euler", num_steps=4)
    b = sample(gauss(), latents(), solver="euler", num_steps=3, ends="denoised")
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
