"""DPM-Solver++ multistep: orders, equalities, fewer points at the end, thresholding."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from edm_fast.sampling.solvers._multistep import dynamic_threshold
from helpers.convergence import gauss, latents, order_of


@pytest.mark.parametrize(
    ("order", "options", "expected"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (2, {"solver_type": "heun"}, 2),
        (3, {}, 2),  # as published
        (3, {"form": "noise"}, 2),
        (3, {"exact": True}, 3),
    ],
)
def test_order(order, options, expected):
    assert order_of("dpmpp", order=order, **options) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"solver": "dpmpp", "order": 1}, {"solver": "euler"}),
        ({"solver": "dpmpp", "order": 2, "solver_type": "heun"}, {"solver": "exp_ab_x", "order": 2}),
        ({"solver": "dpmpp", "order": 3, "exact": True, "solver_type": "heun"}, {"solver": "exp_ab_x", "order": 3}),
    ],
)
def test_equal_solvers(a, b):
    if a["order"] > 1:
        a["lower_order_final"] = False
    found = [sample(gauss(), latents(), num_steps=9, ends="sigma_min", **settings) for settings in (a, b)]
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("lower_order_final", "steps", "expected"),
    [
        (True, 6, [1, 2, 3, 3, 2, 1]),
        (False, 6, [1, 2, 3, 3, 3, 3]),
        ("short", 6, [1, 2, 3, 3, 2, 1]),
        ("short", 15, [1, 2, *[3] * 13]),
    ],
)
def test_points_at_the_end(lower_order_final, steps, expected):
    settings = {"solver": "dpmpp", "order": 3, "num_steps": steps, "lower_order_final": lower_order_final}
    solver = sample.solver(gauss(), None, ends="sigma_min", **settings)
    assert [len(step.coefficients()[0]["weights"]) for step in solver.steps] == expected
    to_zero = sample.solver(gauss(), None, **settings)
    assert len(to_zero.steps[-1].coefficients()[0]["weights"]) == 1


def test_thresholding_is_for_each_image():
    D = torch.linspace(-1, 1, 200, dtype=torch.float64).reshape(1, 2, 10, 10)
    both = dynamic_threshold(torch.cat([D, 3 * D]))
    assert torch.equal(both[:1], D)  # within [-1, 1]: as it is
    assert both[1].abs().max() == 1 and (both[1].abs() == 1).sum() == 2


def test_bad_options():
    for options in ({"solver_type": "x"}, {"form": "x"}, {"lower_order_final": "x"}, {"order": 4}):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver="dpmpp", **options)
