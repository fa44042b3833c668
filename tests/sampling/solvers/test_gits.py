"""GITS with guidance, and what it refuses; its levels are tested through the golden runs."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import Guidance, gits
from helpers.analytic_denoisers import Gauss
from helpers.convergence import gauss, latents

SETTINGS = {"steps": 4, "teacher_levels": 13}


def test_trajectories_are_guided():
    second = Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.9)
    levels = gits(gauss(), latents(), guidance=Guidance(2, second), metric="l2", **SETTINGS)
    assert len(second.sigmas) == 12
    assert levels != gits(gauss(), latents(), guidance=Guidance(1, second), metric="l2", **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "heun", "order": None}, "once a step"),
        ({"order": 4, "afs": True}, "once a step"),
        ({"steps": 13}, "at most 12"),
        ({"batch": 0}, "batch is 0"),
        ({"metric": "bdev"}, "metric is 'bdev'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words):
        gits(gauss(), latents(), **{**SETTINGS, **settings})


def test_no_latents():
    with pytest.raises(UserError, match="latents is empty"):
        gits(gauss(), latents()[:0], **SETTINGS)
