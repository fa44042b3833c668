"""UniPC: orders, evaluations, and the predictor alone."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import sample
from helpers.convergence import gauss, latents, mixture, order_of


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_adds_an_order(order, form, variant):
    settings = {"order": order, "form": form, "variant": variant, "lower_order_final": False}
    if order == 3:
        assert order_of("unipc", mixture(), **settings) == pytest.approx(4, abs=0.7)
    else:
        assert order_of("unipc", **settings) == pytest.approx(order + 1, abs=0.25)


def test_the_predictor_alone():
    settings = {"solver": "unipc", "lower_order_final": False, "disable_corrector": range(99), "num_steps": 9}
    found = sample(gauss(), latents(), order=2, ends="sigma_min", **settings)
    want = sample(gauss(), latents(), solver="dpmpp", num_steps=9, ends="sigma_min", lower_order_final=False)
    torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-11)


def test_a_step_costs_one_evaluation():
    for ends in ("zero", "sigma_min"):
        for disabled in ((), (0, 3)):
            net = gauss()
            out = sample(net, latents(), solver="unipc", num_steps=9, ends=ends, disable_corrector=disabled)
            assert len(net.sigmas) == 9 and out.isfinite().all()


def test_bad_options():
    for options in ({"variant": "bh3"}, {"form": "x"}, {"order": 8}):
        with pytest.raises(UserError, match=f"{[*options][0]} is"):
            sample(gauss(), latents(), solver="unipc", **options)
