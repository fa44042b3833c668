"""Gradient estimation: its relatives and its order."""

import pytest
import torch

from edm_fast.sampling import sample
from helpers.convergence import gauss, latents, order_of


@pytest.mark.parametrize(
    ("gamma", "other"), [(1, {"solver": "euler"}), (1.5, {"solver": "ipndm", "order": 2})], ids=["euler", "ipndm"]
)
def test_relatives(gamma, other):
    common = {"num_steps": 9, "ends": "sigma_min"}
    found = sample(gauss(), latents(), solver="gradient_estimation", gamma=gamma, **common)
    torch.testing.assert_close(found, sample(gauss(), latents(), **other, **common), rtol=1e-12, atol=1e-12)


def test_order():
    assert order_of("gradient_estimation", gamma=1.5) == pytest.approx(2, abs=0.25)
    assert order_of("gradient_estimation") == pytest.approx(1, abs=0.25)
