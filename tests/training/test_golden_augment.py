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
