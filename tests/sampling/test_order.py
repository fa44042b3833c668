"""Order of convergence: the error falls as N^-p, p = 1 for Euler, 2 for Heun and its family, whatever the schedule."""

import math

import pytest
import torch

from edm_fast.diffusion.schedule import edm_sigmas
from edm_fast.sampling import ablation_sampler, edm_sampler, run
from helpers import analytic_denoisers as denoisers
from helpers.multistep import dpm_solver_2m, trapezoid_pece

LO, HI = 0.02, 20.0


@pytest.fixture
def net():
    means = torch.randn([1, 1, 3, 3], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return denoisers.Gauss(means, 0.5)


@pytest.fixture
def latents():
    return torch.randn([2, 1, 3, 3], generator=torch.Generator().manual_seed(1))


def exact(net, latents):
    """The exact flow from HI to LO, then the Euler step into 0, which gives D(x; LO)."""
    start = latents.double() * HI
    x = net.means[0] + (net.solution(start, HI) - net.means[0]) * math.sqrt(1 + (LO / net.sd) ** 2)
    return net.denoise(x, torch.tensor(LO), None)


def order(errors):
    """From errors at N, 2N, 4N, ...: the last observed exponent."""
    return math.log2(errors[-2] / errors[-1])


def test_edm_sampler_is_of_order_2(net, latents):
    want = exact(net, latents)
    errors = [
        (edm_sampler(net, latents, num_steps=n, sigma_min=LO, sigma_max=HI) - want).abs().max() for n in (33, 65, 129)
    ]
    assert errors[-1] < 1e-3
    assert order(errors) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
@pytest.mark.parametrize("scaling", ["vp", "none"])
@pytest.mark.parametrize(
    ("solver", "alpha", "expected"), [("euler", 1, 1), ("heun", 1, 2), ("heun", 0.6, 2), ("heun", 2 / 3, 2)]
)
def test_ablation_sampler(net, latents, schedule, scaling, solver, alpha, expected):
    kwargs = {"sigma_min": LO, "sigma_max": HI, "solver": solver, "alpha": alpha, "schedule": schedule}
    # the step into 0 is the same for every N and drops out of the differences
    out = [ablation_sampler(net, latents, num_steps=n, scaling=scaling, **kwargs) for n in (65, 129, 257, 513)]
    errors = [(a - b).abs().max() for a, b in zip(out[:-1], out[1:], strict=True)]
    assert order(errors) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("discretization", ["vp", "ve", "edm"])
def test_any_grid_converges_to_the_same_image(net, latents, discretization):
    out = ablation_sampler(net, latents, num_steps=400, sigma_min=LO, sigma_max=HI, discretization=discretization)
    torch.testing.assert_close(out, exact(net, latents), rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", [dpm_solver_2m, trapezoid_pece])
def test_the_loop_takes_multistep_methods(net, latents, method):
    errors = []
    for n in (65, 129, 257):
        net.sigmas.clear()
        sigmas = edm_sigmas(n, LO, HI, 7).tolist()
        x = run(net, latents, method(sigmas))
        errors.append((net.denoise(x, torch.tensor(LO), None) - exact(net, latents)).abs().max())
        assert len(net.sigmas) == n - 1 + (method is trapezoid_pece)
    assert order(errors) == pytest.approx(2, abs=0.2)
