"""SDM: what it is equal to, its evaluations, and the calibration of its switch."""

import numpy as np
import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from edm_fast.sampling.solvers.sdm import calibrate
from helpers import golden_cases as g
from helpers.convergence import gauss, latents, mixture, order_of
from helpers.golden_samplers import Recorder, analytic, draws

GOLDEN = g.index("solvers.json")["solvers/sdm"]


@pytest.mark.parametrize("run", [pytest.param(run, id=run["name"]) for run in GOLDEN["config"]["runs"]])
def test_golden_calibration(run):
    arrays, name = g.arrays(GOLDEN), run["name"]
    net = Recorder(analytic(arrays, run["denoiser"]))
    z, labels, _ = draws(run, arrays, arrays[f"{name}/latents"].shape, net.label_dim)
    options = run["options"]
    found = calibrate(
        net, z, arrays[f"{name}/grid"].tolist(), labels, tau=options["tau_k"], relative=options["relative"]
    )
    assert found[0] == options["switch_step"] and len(net.sigmas) == len(found[1])
    np.testing.assert_allclose(found[1], arrays[f"{name}/curvature"], rtol=1e-6, atol=1e-9)


def test_a_bound_that_is_never_reached_leaves_euler():
    levels = sample.solver(mixture(), None, num_steps=5).levels
    switch, curvature = calibrate(mixture(), latents(), levels, tau=1e9)
    assert switch == len(curvature) == 5
    euler = sample(mixture(), latents(), solver="euler", levels=levels)
    assert torch.equal(sample(mixture(), latents(), solver="sdm", switch=switch, levels=levels), euler)


@pytest.mark.parametrize("switch", [0, 3, 7])
def test_evaluations_and_neighbours(switch):
    net = mixture()
    out = sample(net, latents(), solver="sdm", switch=switch, num_steps=8)
    assert len(net.sigmas) == switch + 2 * (7 - switch) + 1
    assert torch.equal(sample(mixture(), latents()[4:5], solver="sdm", switch=switch, num_steps=8), out[4:5])
    assert torch.equal(out, sample(mixture(), latents(), num_steps=8)) == (switch == 0)


def test_order():
    assert order_of("sdm", switch=0) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("switch", [-1, 2.5, True, "3"])
def test_bad_switch(switch):
    with pytest.raises(UserError, match="switch is"):
        sample(gauss(), latents(), solver="sdm", switch=switch)
