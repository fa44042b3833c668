"""SA-Solver: orders without noise, UniPC as a special case, evaluations, noise in an interval."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from helpers.convergence import gauss, latents, mixture, order_of

SETTINGS = {"tau": 0, "lower_order_final": False}


@pytest.mark.parametrize(("p", "c", "expected"), [(2, 1, 1), (1, 2, 2), (2, 2, 2), (2, 3, 3), (3, 4, 4)])
def test_order_without_noise(p, c, expected):
    found = order_of("sa_solver", predictor_order=p, corrector_order=c, **SETTINGS)
    assert found == pytest.approx(expected, abs=0.25)


def test_order_of_three_and_three_points():
    # on the Gaussian the error changes sign
    found = order_of("sa_solver", mixture(), 1024, predictor_order=3, corrector_order=3, **SETTINGS)
    assert found == pytest.approx(3, abs=0.7)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_noise_it_is_unipc(order):
    sa = {"solver": "sa_solver", "predictor_order": order, "corrector_order": order + 1, **SETTINGS}
    unipc = {"solver": "unipc", "order": order, "variant": "bh1", "lower_order_final": False}
    found = [sample(gauss(), latents(), num_steps=9, ends="sigma_min", **settings) for settings in (sa, unipc)]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_exact_weights_of_two_points():
    a = {"solver": "sa_solver", "predictor_order": 2, "corrector_order": 2, "num_steps": 9, "tau": 0}
    published, exact = (sample(gauss(), latents(), two_points=kind, **a) for kind in ("published", "exact"))
    assert not torch.allclose(published, exact)
    exact = order_of("sa_solver", predictor_order=1, corrector_order=2, two_points="exact", **SETTINGS)
    assert exact == pytest.approx(2, abs=0.25)


def test_a_step_costs_one_evaluation():
    for ends in ("zero", "sigma_min"):
        net = gauss()
        sample(net, latents(), solver="sa_solver", num_steps=9, ends=ends)
        assert len(net.sigmas) == 9


def test_noise_in_an_interval_of_levels():
    solver = sample.solver(gauss(), None, solver="sa_solver", num_steps=18, tau=(1.0, 0.05, 2.0))
    for level, step in zip(solver.levels, solver.steps):
        assert all(("c" in numbers) == (0.05 <= level <= 2) for numbers in step.coefficients())


def test_bad_options():
    for options in (
        {"predictor_order": 0},
        {"corrector_order": 9},
        {"tau": -1},
        {"tau": (1, 2)},
        {"tau": (1, 2, 1)},
        {"two_points": "x"},
        {"lower_order_final": 3},
    ):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver="sa_solver", **options)
