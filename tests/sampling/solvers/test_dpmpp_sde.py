"""DPM-Solver++ SDE: equal to other solvers where it should be, orders without noise, points at the end."""

import functools

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from helpers.convergence import gauss, latents, order_of

DRAWS = torch.randn([9, 9, 1, 1, 1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"solver": "dpmpp_2m_sde", "eta": 0}, {"solver": "dpmpp", "lower_order_final": False}),
        ({"solver": "dpmpp_2m_sde", "order": 1}, {"solver": "euler_ancestral"}),
        ({"solver": "dpmpp_2m_sde", "order": 1}, {"solver": "er_sde", "order": 1, "phi": 2}),
        ({"solver": "dpmpp_3m_sde", "eta": 0}, {"solver": "dpmpp", "order": 3, "lower_order_final": False}),
        ({"solver": "er_sde", "order": 1, "phi": 1}, {"solver": "euler"}),
    ],
)
def test_equal_solvers(a, b):
    if a["solver"] == "dpmpp_3m_sde":
        b = {**b, "solver_type": "heun"}
    for ends in ("sigma_min", "zero"):
        found = []
        for settings in (a, b):
            draw = functools.partial(lambda draws, x: next(draws), iter(DRAWS))
            found.append(sample(gauss(), latents(), None, draw, num_steps=9, ends=ends, **settings))
        torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("solver", "options"), [("dpmpp_2m_sde", {}), ("dpmpp_3m_sde", {}), ("dpmpp_sde", {"r": 0.4})])
def test_order_without_noise(solver, options):
    assert order_of(solver, eta=0, **options) == pytest.approx(2, abs=0.25)


def test_points_at_the_end():
    settings = {"solver": "dpmpp_2m_sde", "num_steps": 5, "ends": "sigma_min"}
    for lowered, expected in ((False, [1, 2, 2, 2, 2]), (True, [1, 2, 2, 2, 1]), ("short", [1, 2, 2, 2, 1])):
        solver = sample.solver(gauss(), None, lower_order_final=lowered, **settings)
        assert [len(step.coefficients()[0]["weights"]) for step in solver.steps] == expected


def test_bad_options():
    for options in ({"solver_type": "x"}, {"order": 3}, {"lower_order_final": "x"}):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver="dpmpp_2m_sde", **options)
    with pytest.raises(UserError, match="r is 0"):
        sample(gauss(), latents(), solver="dpmpp_sde", r=0)
