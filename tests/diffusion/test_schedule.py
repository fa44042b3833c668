"""The schedules' own consistency; their values are tested through the golden samplers."""

import math

import pytest
import torch

from edm_fast.diffusion import schedule as grids

T = torch.tensor([0.01, 0.3, 0.9, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("name", grids.SCHEDULES)
def test_inverse_and_derivative(name):
    process = grids.make_schedule(name, beta_d=19.9, beta_min=0.1)
    torch.testing.assert_close(process.sigma_inv(process.sigma(T)), T, rtol=1e-9, atol=0)
    h = 1e-6
    slope = (process.sigma(T + h) - process.sigma(T - h)) / (2 * h)
    torch.testing.assert_close(process.sigma_deriv(T, process.sigma(T)), slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", grids.SCALINGS)
@pytest.mark.parametrize("schedule", grids.SCHEDULES)
def test_scaling_derivative(name, schedule):
    scaling, process = grids.make_scaling(name), grids.make_schedule(schedule, beta_d=19.9, beta_min=0.1)
    sigma, h = process.sigma(T), 1e-6
    slope = (scaling.s(process.sigma(T + h)) - scaling.s(process.sigma(T - h))) / (2 * h)
    torch.testing.assert_close(scaling.s_deriv(sigma, process.sigma_deriv(T, sigma)), slope, rtol=1e-6, atol=1e-9)


def test_refitted_betas_meet_the_limits():
    betas = grids.vp_betas(0.03, 50, 1e-3)
    assert grids.vp_sigma(1e-3, *betas) == pytest.approx(0.03)
    assert grids.vp_sigma(1.0, *betas) == pytest.approx(50)
    assert grids.vp_betas(grids.vp_sigma(1e-3), grids.vp_sigma(1.0), 1e-3) == pytest.approx((19.9, 0.1))


@pytest.mark.parametrize("n", [2, 3, 18])
def test_grids_run_down_between_the_limits(n):
    for sigmas in (
        grids.edm_sigmas(n, 0.02, 80, 7),
        grids.vp_sigmas(n, 0.02, 80, 1e-3),
        grids.ve_sigmas(n, 0.02, 80),
    ):
        assert sigmas.dtype == torch.float64 and sigmas.device.type == "cpu" and sigmas.shape == (n,)
        assert sigmas[0].item() == pytest.approx(80) and sigmas[-1].item() == pytest.approx(0.02)
        assert (sigmas.diff() < 0).all()


def test_iddpm_grid_takes_table_entries_within_the_limits():
    sigmas = grids.iddpm_sigmas(10, 0.002, 81, 0.001, 0.008, 1000)
    assert 79 < sigmas[0] < 81 and 0.002 <= sigmas[-1] < 0.01
    assert len(grids.iddpm_sigmas(10, 80.1, 80.2, 0.001, 0.008, 1000)) == 0


def test_rho_1_is_uniform():
    torch.testing.assert_close(grids.edm_sigmas(5, 1, 9, 1), torch.tensor([9.0, 7, 5, 3, 1], dtype=torch.float64))


def test_default_limits():
    assert grids.default_limits("edm", 1e-3) == (0.002, 80)
    assert grids.default_limits("vp", 1e-3)[1] == pytest.approx(math.sqrt(math.exp(9.95 + 0.1) - 1))
