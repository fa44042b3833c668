"""Restart: evaluations of the published configurations, levels visited, equal to EDM's sampler without restarts."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import edm_sampler, sample
from edm_fast.sampling.solvers.restart import PRESETS
from helpers.convergence import gauss, latents


def noise(x):
    return torch.full_like(x, 0.7)


@pytest.mark.parametrize("name", PRESETS)
def test_evaluations_of_the_published_configurations(name):
    nfe = int(name.split("-")[-1])
    solver = sample.solver(gauss(), None, solver="restart", nfe=nfe, restart=name)
    assert solver.evaluations == nfe
    assert len(solver.levels) - 1 == len(solver.steps) >= 14


def test_nfe_where_more_steps_cost_less():
    """With 9 steps two restarts fall on one level, and the later wins."""
    settings = {"solver": "restart", "restart": "imagenet64-67"}
    counts = [sample.solver(gauss(), None, num_steps=n, **settings).evaluations for n in range(1, 20)]
    assert counts[8] < counts[7]
    for nfe in {*counts}:
        assert sample.solver(gauss(), None, nfe=nfe, **settings).evaluations == nfe
    with pytest.raises(UserError, match="expected 41 or 47$"):
        sample.solver(gauss(), None, nfe=44, **settings)


@pytest.mark.parametrize("churn", [{}, {"S_churn": 4, "S_min": 0.05, "S_max": 30, "S_noise": 1.01}])
def test_without_restarts_it_is_the_edm_sampler(churn):
    found = sample(gauss(), latents(), None, noise, solver="restart", num_steps=9, restart=[], **churn)
    torch.testing.assert_close(found, edm_sampler(gauss(), latents(), None, noise, num_steps=9, **churn))


def test_the_levels_of_a_restart():
    levels = sample.solver(gauss(), None, solver="restart", num_steps=8, restart=[(3, 2, 0.4, 2.0)]).levels
    main = sample.solver(gauss(), None, solver="heun", num_steps=8).levels
    low = min(main, key=lambda level: abs(level - 0.4))
    at = main.index(low) + 1
    up = levels[at : at + 3]
    assert up[0] == 2.0 and 2.0 > up[1] > up[2] == low
    assert levels == [*main[:at], *up, *up, *main[at:]]


def test_of_two_entries_at_one_level_the_later_wins():
    settings = {"solver": "restart", "num_steps": 8}
    both = sample.solver(gauss(), None, restart=[(4, 1, 0.4, 2.0), (3, 2, 0.41, 1.0)], **settings)
    later = sample.solver(gauss(), None, restart={"1": (3, 2, 0.41, 1.0)}, **settings)
    assert both.levels == later.levels


def test_a_restart_from_0_ends_in_D():
    out = sample(gauss(), latents(), solver="restart", num_steps=5, restart=[(3, 1, 0.0, 2.0)])
    assert out.isfinite().all()


def test_bad_options():
    bad = (
        "x",
        3,
        [(3, 1, 1.0)],
        [(1, 1, 0.1, 0.2)],
        [(3, 0, 0.1, 0.2)],
        [(3, 1, 0.2, 0.1)],
        [(3, 1, 0.1, float("nan"))],
    )
    for restart in bad:
        with pytest.raises(UserError, match="restart is"):
            sample(gauss(), latents(), solver="restart", restart=restart)
    with pytest.raises(UserError, match="restart goes from level"):
        sample(gauss(), latents(), solver="restart", levels=[80.0, 10.0, 1.0, 0.0], restart=[(3, 1, 7.0, 8.0)])
    for options in ({"restart_gamma": -1}, {"restart_rho": 0}, {"S_churn": -1}):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver="restart", **options)
