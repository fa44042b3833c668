"""edm_fast.sample: steps and evaluations, levels, options, callbacks."""

import math

import pytest
import torch

import edm_fast
from edm_fast.errors import UserError
from edm_fast.sampling import StackedRandomGenerator, StopSampling, optimised_levels, sample
from edm_fast.sampling.levels import LEVELS
from edm_fast.sampling.solvers import registry
from helpers.analytic_denoisers import Gauss
from helpers.convergence import gauss, latents


@pytest.mark.parametrize("name", sorted(registry()))
def test_nfe_is_spent_exactly_or_refused_with_the_nearest(name):
    possible = {sample.solver(gauss(), None, solver=name, num_steps=n).evaluations for n in range(1, 12)}
    for nfe in range(1, 11):
        net = gauss()
        if nfe in possible:
            assert sample(net, latents(), solver=name, nfe=nfe).isfinite().all()
            assert len(net.sigmas) == nfe
        else:
            nearest = [
                str(n) for n in (max((n for n in possible if n < nfe), default=""), min(n for n in possible if n > nfe))
            ]
            with pytest.raises(
                UserError, match=f"solver {name} cannot.*expected {' or '.join(n for n in nearest if n)}$"
            ):
                sample(net, latents(), solver=name, nfe=nfe)


def randn_like(seeds):
    return StackedRandomGenerator("cpu", seeds).randn_like


@pytest.mark.parametrize("name", sorted(registry()))
def test_an_image_does_not_depend_on_its_batch(name):
    seeds = range(len(latents()))
    together = sample(gauss(), latents(), None, randn_like(seeds), solver=name, num_steps=6)
    alone = sample(gauss(), latents()[3:4], None, randn_like(seeds[3:4]), solver=name, num_steps=6)
    assert together.dtype == torch.float64 and torch.equal(together[3:4], alone)


@pytest.mark.parametrize("grid", sorted(LEVELS))
def test_levels_fall_from_end_to_end(grid):
    for ends, last in (("zero", [0.02, 0.0]), ("sigma_min", [0.02]), ("denoised", [0.02, 0.0])):
        settings = {"levels": grid, "num_steps": 5, "sigma_min": 0.02, "sigma_max": 50, "ends": ends}
        levels = sample.solver(gauss(), None, **settings).levels
        assert len(levels) == 6 + (ends == "denoised") and levels[0] == pytest.approx(50)
        assert levels[-len(last) :] == pytest.approx(last) and levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("options", [(33,), (5, 2, 1), (5, 1, 2, 3), (5, 1, 2, 1, -1), (0,)])
def test_optimised_levels_refuse_bad_options(options):
    with pytest.raises(UserError, match="expected"):
        optimised_levels(*options)


@pytest.mark.parametrize(("grid", "rho"), [("karras", 7), ("time_uniform", 2), ("polyexponential", 1)])
def test_each_grid_has_a_rho_of_its_own(grid, rho):
    default, same, other = (
        sample.solver(gauss(), None, levels=grid, **settings).levels for settings in ({}, {"rho": rho}, {"rho": 3})
    )
    assert default == same != other


@pytest.mark.parametrize("solver", ["dpmpp", "unipc", "exp_ab_x", "dpmpp_2m_sde", "sa_solver"])
def test_lower_order_final_as_a_number(solver):
    yes, one, no = (
        sample.solver(gauss(), None, solver=solver, num_steps=6, ends="sigma_min", lower_order_final=value).steps
        for value in (True, 1, 0)
    )
    assert yes == one != no


def test_levels_as_a_list():
    net = gauss()
    want = sample(net, latents(), solver="dpmpp", num_steps=5, sigma_min=0.1)
    levels = sample.solver(net, None, solver="dpmpp", num_steps=5, sigma_min=0.1).levels
    for given in (levels, tuple(levels), torch.tensor(levels, dtype=torch.float64)):
        assert torch.equal(sample(net, latents(), solver="dpmpp", levels=given, num_steps=5, nfe=None), want)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "huen"}, "near names: heun"),
        ({"solver": "heun", "order": 2}, "no option order; expected none"),
        ({"solver": "heun", "steps": 2}, r"no option steps \(near names: num_steps\); expected none"),
        ({"solver": "adams", "eta": 1}, "no option eta; expected order"),
        ({"num_steps": 5, "nfe": 9}, "expected one of them"),
        ({"nfe": 0}, "nfe is 0"),
        ({"nfe": 2.5}, "nfe is 2.5"),
        ({"levels": "x"}, "levels is 'x'"),
        ({"levels": object()}, "expected a name or numbers"),
        ({"levels": [1.0]}, "two numbers or more"),
        ({"levels": [1.0, 2.0]}, "sigma_min < sigma_max"),
        ({"levels": [3.0, 1.0, 1.0, 0.0]}, "expected falling levels"),
        ({"levels": [3.0, 1.0, -1.0]}, "sigma_min"),
        ({"levels": [3.0, math.nan, 0.0]}, "sigma_min|network has"),
        ({"levels": [3.0, 1.0, 0.0], "num_steps": 5}, "num_steps is 5; with these 3 levels it is 2"),
        ({"levels": [3.0, 1.0, 0.0], "nfe": 5}, "nfe is 5; with these 3 levels it is 3"),
        ({"levels": [3.0, 1.0, 0.0], "sigma_max": 80}, "sigma_max does not go with a list of levels"),
        ({"levels": [3.0, 1.0, 0.0], "sigma_min": 0.002}, "sigma_min does not go with"),
        ({"levels": [3.0, 1.0, 0.0], "rho": 7}, "rho does not go with"),
        ({"levels": [3.0, 1.0, 0.5], "ends": "denoised"}, "ends does not go with"),
        ({"solver": sample.solver(gauss(), None), "nfe": 35}, "nfe does not go with a solver that has its levels"),
        ({"solver": sample.solver(gauss(), None), "r": 0.5}, "r does not go with"),
        ({"ends": "x"}, "ends is 'x'"),
        ({"rho": 0}, "rho is 0"),
        ({"solver": "gradient_estimation", "gamma": "x"}, "gamma is 'x'"),
        ({"solver": "gradient_estimation", "gamma": math.nan}, "step 1 of 18 has a coefficient"),
        ({"solver": "dpm2", "r": "x"}, "r is 'x'"),
        ({"solver": "dpmpp_sde", "r": 2}, "r is 2"),
        ({"solver": "unipc", "disable_corrector": 0}, "disable_corrector is 0"),
        ({"solver": "sa_solver", "lower_order_final": "short"}, "lower_order_final is 'short'"),
        ({"solver": "exp_ab_x", "order": 99, "num_steps": 1}, "order is 99"),
        ({"solver": "exp_ab_eps", "lower_order_final": 2, "num_steps": 1}, "lower_order_final is 2"),
        ({"solver": "dpmpp", "lower_order_final": "x", "num_steps": 1}, "lower_order_final is 'x'"),
        ({"sigma_min": 3, "sigma_max": 2}, "sigma_min < sigma_max"),
        ({"callback": lambda *args: 3}, "callback returned"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        sample(gauss(), latents(), **settings)
    assert "\n" not in str(caught.value)


def test_levels_outside_the_network_s_range():
    net = Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.5, sigma_min=0.1, sigma_max=20)
    levels = sample.solver(net, None, num_steps=4).levels
    assert (levels[0], *levels[-2:]) == (pytest.approx(20), pytest.approx(0.1), 0)
    with pytest.raises(UserError, match="the network has 0.1 to 20"):
        sample(net, latents(), levels=[30.0, 1.0, 0.0])


@pytest.mark.parametrize("grid", sorted(LEVELS))
@pytest.mark.parametrize("limits", [(0.002, 80), (0.1, 20), (0.0064223, 152.16697692871094)])
def test_levels_by_name_serve_as_a_list(grid, limits):
    """Their ends may be rounded to just outside of the network's range."""
    net = Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.5, sigma_min=limits[0], sigma_max=limits[1])
    for ends in ("zero", "sigma_min"):
        levels = sample.solver(net, None, levels=grid, sigma_min=1e-3, sigma_max=1e3, ends=ends).levels
        assert sample.solver(net, None, levels=levels).levels == levels


@pytest.mark.parametrize("name", ["heun", "dpmpp", "unipc", "adams"])
def test_a_callback_sees_every_step(name):
    found = []
    want = sample(gauss(), latents(), solver=name, num_steps=6)
    out = sample(gauss(), latents(), solver=name, num_steps=6, callback=lambda *args: found.append(args))
    levels = sample.solver(gauss(), None, solver=name, num_steps=6).levels
    assert torch.equal(out, want) and [i for i, *_ in found] == [*range(6)]
    assert [sigma for _, sigma, _, _ in found] == levels[1:]
    assert torch.equal(found[-1][2], out) and all(d.shape == out.shape for *_, d in found)


def test_a_callback_changes_x_and_stops_the_run():
    def pinned(i, sigma, x, denoised):
        if i == 3:
            raise StopSampling
        return torch.full_like(x, sigma)

    levels = sample.solver(gauss(), None, solver="euler", num_steps=6).levels
    want = sample(gauss(), torch.ones(1, 1, 1, 1), solver="euler", levels=levels[3:5])
    out = sample(gauss(), latents(), solver="euler", num_steps=6, callback=pinned)
    torch.testing.assert_close(out[:1], want)


def test_a_solver_with_its_steps():
    steps = sample.solver(gauss(), None, solver="dpmpp", nfe=5)
    assert torch.equal(sample(gauss(), latents(), solver=steps), sample(gauss(), latents(), solver="dpmpp", nfe=5))


def test_it_is_public():
    assert edm_fast.sample is sample and edm_fast.StopSampling is StopSampling
