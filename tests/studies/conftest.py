"""What several studies are tested with."""

import numpy as np
import pytest

from edm_fast.data.convert import write_dataset
from helpers import tiny_detector


@pytest.fixture
def data(tmp_path):
    """Training images for a tiny network; beside them the detector d.pt."""
    rng = np.random.RandomState(0)
    path = tmp_path / "data.zip"
    write_dataset(path, ((rng.randint(100, 156, (8, 8, 3)).astype(np.uint8), None) for _ in range(40)))
    tiny_detector.save(tmp_path / "d.pt", dim=3)
    return path
