"""Ancestral solvers: the split of noise, and what they are without it."""

import pytest
import torch

from edm_fast.sampling import sample
from edm_fast.sampling.solvers._noise import ancestral
from helpers.convergence import gauss, latents, order_of


def test_the_split_keeps_the_level():
    for eta in (0, 0.3, 1, 5):
        v, u = ancestral(2.0, 0.5, eta)
        assert v**2 + u**2 == pytest.approx(0.25)
    assert ancestral(2.0, 0.5, 0) == (0.5, 0) and ancestral(2.0, 0.0, 1) == (0, 0)


@pytest.mark.parametrize(
    ("solver", "ode"), [("euler_ancestral", "euler"), ("dpm2_ancestral", "dpm2"), ("dpmpp_2s_ancestral", None)]
)
def test_without_noise(solver, ode):
    if ode is not None:
        found = [
            sample(gauss(), latents(), solver=name, num_steps=9, **o) for name, o in ((solver, {"eta": 0}), (ode, {}))
        ]
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert order_of(solver, eta=0) == pytest.approx(1 if ode == "euler" else 2, abs=0.25)


def test_more_noise_than_there_is_room_for():
    for solver in ("euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"):
        assert sample(gauss(), latents(), solver=solver, num_steps=5, eta=9).isfinite().all()
