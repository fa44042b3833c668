"""ER-SDE: orders in its ODE form, exact integrals against sums, options."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from helpers.convergence import gauss, latents, order_of
from helpers.variance import variance_order


@pytest.mark.parametrize(("order", "expected"), [(1, 1), (2, 2), (3, 2)])
def test_order_of_the_ode(order, expected):
    assert order_of("er_sde", order=order, phi=1) == pytest.approx(expected, abs=0.25)


def test_the_published_sums_lose_an_order():
    assert 1 < variance_order(solver="er_sde", quadrature_points=100, clip=1e-6) < 1.6


@pytest.mark.parametrize("phi", [None, 1, 1.5, 2, 2.5])
def test_sums_of_many_points_are_the_integrals(phi):
    settings = {"solver": "er_sde", "phi": phi, "num_steps": 6}
    found = [
        sample(gauss(), latents(), None, torch.zeros_like, quadrature_points=points, **settings)
        for points in (None, 100_000)
    ]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_the_ode_has_no_noise_and_clipping_removes_that_of_the_last_steps():
    def noisy(**options):
        steps = sample.solver(gauss(), None, solver="er_sde", num_steps=10, **options).steps
        return [bool(step.coefficients()[0].get("c")) for step in steps]

    assert not any(noisy(phi=1))
    assert noisy() == [*[True] * 9, False]
    assert noisy(clip=1e-4) == sorted(noisy(clip=1e-4), reverse=True) != noisy()


def test_bad_options():
    for options in ({"order": 4}, {"phi": 0.5}, {"phi": "x"}, {"quadrature_points": 0}, {"clip": -1}):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver="er_sde", **options)
