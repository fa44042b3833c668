"""Adams-Bashforth in sigma: orders, equalities, and the first slope without an evaluation."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from edm_fast.sampling.solvers.adams import ROWS, adams, ipndm, ipndm_v
from helpers.convergence import gauss, latents, order_of

EVEN = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0]


@pytest.mark.parametrize(
    ("solver", "order", "expected"),
    [
        *(("adams", order, order) for order in (1, 2, 3, 4)),
        *(("ipndm", order, 2 if order > 1 else 1) for order in (1, 2, 3, 4)),  # constant weights
        ("ipndm_v", 2, 2),
        ("ipndm_v", 3, 3),
    ],
)
def test_order(solver, order, expected):
    assert order_of(solver, order=order) == pytest.approx(expected, abs=0.25)


def weights(solver):
    return [step.coefficients()[0]["weights"] for step in solver.steps]


def test_on_even_levels_all_three_have_the_classical_rows():
    for order in (1, 2, 3):
        for solver in (adams, ipndm, ipndm_v):
            for i, row in enumerate(weights(solver(EVEN, order=order))):
                assert row == pytest.approx([-a for a in ROWS[min(i, order - 1)]], abs=1e-12)
    for solver in (adams, ipndm):
        assert weights(solver(EVEN, order=4))[-1] == pytest.approx([-a for a in ROWS[3]], abs=1e-12)


def test_the_published_variable_step_weights_are_those_of_adams_up_to_two_points():
    levels = [80.0, 20.0, 6.0, 1.0]
    for a, b in zip(weights(adams(levels, order=2)), weights(ipndm_v(levels, order=2)), strict=True):
        assert a == pytest.approx(b, rel=1e-12)


def test_afs_saves_the_first_evaluation():
    net = gauss()
    out = sample(net, latents(), solver="ipndm", num_steps=7, afs=True)
    assert len(net.sigmas) == 6 == sample.solver(net, None, solver="ipndm", num_steps=7, afs=True).evaluations
    torch.testing.assert_close(out, sample(net, latents(), solver="ipndm", num_steps=7), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("solver", "order"), [("ipndm", 5), ("ipndm", 0), ("adams", 9), ("adams", 2.5), ("adams", "2")]
)
def test_orders_that_there_are_not(solver, order):
    with pytest.raises(UserError, match="order is"):
        sample(gauss(), latents(), solver=solver, order=order)
