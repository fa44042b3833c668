"""Solvers against other packages run here and now, and the converged ODE against scipy, on a mixture of Gaussians."""

import pytest
import torch

from edm_fast.sampling import invert, sample
from helpers import peers
from helpers.convergence import exact, latents, mixture

LO, HI = 0.02, 20.0
GRID = {"sigma_min": LO, "sigma_max": HI}
STEPS = 8


def levels(**settings):
    return sample.solver(mixture(), None, num_steps=STEPS, **GRID, **settings).levels


def draws(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(latents().shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize(
    ("function", "solver", "options", "theirs", "tolerance"),
    [
        ("euler", "euler", {}, {}, 1e-12),
        ("heun", "heun", {}, {}, 1e-12),
        ("dpm_2", "dpm2", {}, {}, 1e-12),
        ("lms", "adams", {"order": 4}, {"order": 4}, 1e-5),  # its integrals are adaptive, to 1e-4
        ("dpmpp_2m", "dpmpp", {"order": 2, "lower_order_final": False}, {}, 1e-12),
        ("euler_ancestral", "euler_ancestral", {"eta": 0.7}, {"eta": 0.7}, 1e-12),
        ("dpm_2_ancestral", "dpm2_ancestral", {}, {}, 1e-12),
        ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", {"s_noise": 1.01}, {"s_noise": 1.01}, 1e-12),
        ("dpmpp_sde", "dpmpp_sde", {"r": 0.6}, {"r": 0.6}, 1e-12),
        ("dpmpp_2m_sde", "dpmpp_2m_sde", {"solver_type": "heun"}, {"solver_type": "heun"}, 1e-12),
        ("dpmpp_3m_sde", "dpmpp_3m_sde", {"eta": 0.5}, {"eta": 0.5}, 1e-12),
    ],
)
def test_k_diffusion(function, solver, options, theirs, tolerance):
    noise = draws(2 * STEPS) if "ancestral" in solver or "sde" in solver else None
    want = peers.by_k_diffusion(function, mixture(), latents(), levels(), noise, **theirs)
    left = iter(noise or [])
    found = sample(mixture(), latents(), None, lambda x: next(left), solver=solver, levels=levels(), **options)
    assert (found - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize(
    ("sampler", "solver", "order"),
    [
        *(("Euler", "euler", None), ("Heun", "heun", None), ("DDIM", "euler", None)),
        *(("zAB", "adams", 3), ("zEAB", "exp_ab_eps", 3), ("xEAB", "exp_ab_x", 4)),
    ],
)
def test_azula(sampler, solver, order):
    theirs = {} if order is None else {"order": order}
    want = peers.by_azula(sampler, mixture(), latents(), LO, HI, STEPS, **theirs)
    settings = {"levels": "logsnr", "num_steps": STEPS, "ends": "sigma_min", **GRID}
    found = sample(mixture(), latents(), solver=solver, order=order, **settings)
    assert (found - want).abs().max() <= 1e-9 * want.abs().max()


@pytest.mark.parametrize(
    ("scheduler", "solver", "order", "config", "options"),
    [
        *(("UniPC", "unipc", n, {"solver_type": kind}, {"variant": kind}) for n, kind in ((2, "bh1"), (3, "bh2"))),
        ("DEIS", "exp_ab_eps", 3, {}, {"lower_order_final": "short"}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_diffusers(scheduler, solver, order, config, options):
    grid = levels(ends="sigma_min")
    want = peers.by_diffusers(scheduler, mixture(), latents(), grid, solver_order=order, **config)
    found = sample(mixture(), latents(), solver=solver, order=order, levels=grid, **options)
    assert (found - want).abs().max() <= 1e-9 * want.abs().max()


def test_scipy():
    """Down to the quantiles of the mixture, as every solver goes in the limit, and up again as invert does."""
    settings = {"solver": "unipc", "levels": "logsnr", "num_steps": 400, "lower_order_final": False}
    down = peers.by_scipy(mixture(), latents() * 80, 80.0, 0.002)
    assert (down - exact(mixture(), latents())).abs().max() < 1e-8
    assert (sample(mixture(), latents(), ends="sigma_min", **settings) - down).abs().max() < 2e-5
    up = peers.by_scipy(mixture(), down, 0.002, 80.0) / 80
    assert (up - latents()).abs().max() < 1e-8
    assert (invert(mixture(), down, solver="dpm2", levels="logsnr", num_steps=400) - up).abs().max() < 1e-4
