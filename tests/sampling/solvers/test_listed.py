"""A solver of numbers is the solver they were taken from."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from helpers.convergence import gauss, latents

LEVELS = [80.0, 20.0, 5.0, 1.0, 0.0]


def test_weights_of_a_multistep_solver():
    steps = sample.solver(gauss(), None, solver="ipndm", order=3, levels=LEVELS).steps
    weights = [step.coefficients()[0]["weights"] for step in steps]
    wanted = sample(gauss(), latents(), solver="ipndm", order=3, levels=LEVELS)
    assert torch.equal(sample(gauss(), latents(), solver="listed", levels=LEVELS, weights=weights), wanted)
    weights[2][1] *= 1.01
    assert not torch.allclose(sample(gauss(), latents(), solver="listed", levels=LEVELS, weights=weights), wanted)


def test_without_weights_it_is_euler():
    listed, euler = (sample(gauss(), latents(), solver=name, levels=LEVELS) for name in ("listed", "euler"))
    assert torch.allclose(listed, euler, rtol=1e-14)


@pytest.mark.parametrize(
    "weights, line",
    [
        ([[1.0]], "weights of 1 steps; expected a list for each of 4"),
        (3, "weights of int steps"),
        ([[1.0], [1.0, 1.0, 1.0], [1.0], [1.0]], "step 1 .*expected a list of 1 to 2 numbers"),
        ([[1.0], [], [1.0], [1.0]], "step 1 "),
        ([[1.0], ["a"], [1.0], [1.0]], "weight 0 of step 1 is 'a'; expected a number"),
        ([[1.0], [float("inf")], [1.0], [1.0]], "finite"),
    ],
)
def test_faults(weights, line):
    with pytest.raises(UserError, match=line):
        sample.solver(gauss(), None, solver="listed", levels=LEVELS, weights=weights)
