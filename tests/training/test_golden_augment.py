"""Augmentation against golden images, labels and generator state."""

import pytest
import torch

from edm_fast.training import AugmentPipe
from helpers import golden_cases as g


@pytest.mark.parametrize("entry", g.entries("augment"), ids=g.entry_id)
def test_golden(entry):
    images = torch.from_numpy(g.arrays(entry)["in/images"])
    torch.manual_seed(entry["config"]["torch_manual_seed"])
    out, labels = AugmentPipe(**entry["config"]["kwargs"])(images)
    g.check(entry, "out/images", out)
    g.check(entry, "out/labels", labels)
    g.check(entry, "rand_after", torch.rand([3]))


@pytest.mark.skipif(g.same_arithmetic() is not None, reason=str(g.same_arithmetic()))
@pytest.mark.parametrize("entry", g.entries("augment"), ids=g.entry_id)
def test_bits(entry):
    """Every augmented image has the bits of the published code: a last digit here is 1e-6 of the gradient."""
    torch.manual_seed(entry["config"]["torch_manual_seed"])
    out, labels = AugmentPipe(**entry["config"]["kwargs"])(torch.from_numpy(g.arrays(entry)["in/images"]))
    g.check_bits(entry, "out/images", out)
    g.check_bits(entry, "out/labels", labels)
