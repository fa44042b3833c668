"""DEIS-tAB: orders of convergence, and a first step that is exact."""

import pytest

from edm_fast.sampling.solvers.deis import deis_tab
from helpers.convergence import order_of


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order(order):
    assert order_of("deis_tab", order=order) == pytest.approx(order, abs=0.25)


def test_the_weights_of_a_step_sum_to_its_length():
    """int S'(t) dt = sigma' - sigma; the basis sums to 1."""
    levels = [80.0, 20.0, 6.0, 1.0, 0.1, 0.002]
    for step, sigma, sigma_next in zip(deis_tab(levels).steps, levels, levels[1:]):
        assert sum(step.coefficients()[0]["weights"]) == pytest.approx(sigma_next - sigma, rel=1e-12)
