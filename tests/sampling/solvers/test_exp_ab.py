"""Exponential Adams-Bashforth: orders of convergence, and one point of either form."""

import pytest
import torch

from edm_fast.sampling import sample
from helpers.convergence import gauss, latents, mixture, order_of


@pytest.mark.parametrize("solver", ["exp_ab_x", "exp_ab_eps"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order(solver, order):
    if order == 4:  # on the Gaussian the error changes sign
        assert order_of(solver, mixture(), order=order) == pytest.approx(order, abs=0.7)
    else:
        assert order_of(solver, order=order) == pytest.approx(order, abs=0.25)


def test_with_one_point_both_are_euler():
    want = sample(gauss(), latents(), solver="euler", num_steps=9)
    for solver in ("exp_ab_x", "exp_ab_eps"):
        torch.testing.assert_close(sample(gauss(), latents(), solver=solver, order=1, num_steps=9), want)
