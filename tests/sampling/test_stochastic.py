"""What holds for every stochastic solver: mean and variance on Gaussian data, draws, the step to 0."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from helpers.convergence import gauss, latents
from helpers.variance import SD, mean_and_variance, variance, variance_order

SOLVERS = ["euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]
SOLVERS += ["er_sde", "restart", "sa_solver"]


@pytest.mark.parametrize(
    ("solver", "options", "expected"),
    [
        ("euler_ancestral", {}, 1),
        ("dpmpp_sde", {}, 1),
        ("dpmpp_sde", {"r": 0.7}, 1),
        ("dpm2_ancestral", {}, 2),
        ("dpmpp_2s_ancestral", {}, 2),
        ("dpmpp_2m_sde", {}, 2),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, 2),
        ("dpmpp_2m_sde", {"eta": 0.5}, 2),
        ("dpmpp_3m_sde", {}, 2),
        ("er_sde", {"order": 1}, 1),
        ("er_sde", {"order": 2}, 2),
        ("er_sde", {"order": 3}, 2),
        ("sa_solver", {"predictor_order": 2, "corrector_order": 2}, 2),
        ("sa_solver", {"predictor_order": 3, "corrector_order": 4}, 2),
    ],
)
def test_order_of_the_variance(solver, options, expected):
    assert variance_order(solver=solver, **options) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("solver", SOLVERS)
def test_mean_and_variance(solver):
    mean, found = mean_and_variance(20_000, 60, solver=solver)
    assert mean == pytest.approx(0.3, abs=0.018)  # five standard errors
    assert found == pytest.approx(variance(60, solver=solver), rel=0.05)
    assert variance(256, solver=solver) == pytest.approx(SD**2, rel=0.06)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_step_to_0_gives_D(solver, steps):
    seen = []
    out = sample(gauss(), latents(), solver=solver, num_steps=steps, callback=lambda *args: seen.append(args))
    torch.testing.assert_close(out, seen[-1][3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_noise_is_drawn_as_often_as_the_steps_say_and_used(solver):
    drawn = []

    def randn_like(x):
        drawn.append(x)
        return torch.ones_like(x)

    settings = {"solver": solver, "num_steps": 5, "ends": "sigma_min"}
    out = sample(gauss(), latents(), None, randn_like, **settings)
    assert len(drawn) == sum(step.draws for step in sample.solver(gauss(), None, **settings).steps)
    assert not torch.allclose(out, sample(gauss(), latents(), None, torch.zeros_like, **settings))


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name.startswith(("euler", "dpm"))])
def test_bad_amounts_of_noise(solver):
    for options in ({"eta": -1}, {"s_noise": float("nan")}, {"eta": "x"}):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver=solver, **options)
