"""EDM2's index stream and seeds against the golden data."""

from itertools import islice

import numpy as np
import pytest
import torch

from edm_fast.data import EpochSampler, mixed_seed
from edm_fast.errors import UserError
from helpers import golden_cases as g


@pytest.mark.parametrize("entry", g.edm2("rng", lambda e: "runs" in e["config"]), ids=g.entry_id)
def test_golden_edm2_order(entry):
    for run in entry["config"]["runs"]:
        want = g.arrays(entry)[run["name"]]
        sampler = EpochSampler(range(run["dataset_size"]), **run["kwargs"])
        g.check(entry, run["name"], list(islice(sampler, len(want))))
    for size, rank in ((0, 0), (4, 2)):
        with pytest.raises(UserError):
            EpochSampler(range(size), rank=rank, num_replicas=2)


@pytest.mark.parametrize("entry", g.edm2("rng", lambda e: "points" in e["config"]), ids=g.entry_id)
def test_golden_edm2_seeds(entry):
    for point in entry["config"]["points"]:
        seed = mixed_seed(*point["args"])
        assert seed == point["seed"]
        generator = torch.Generator().manual_seed(seed)
        assert torch.rand(3, generator=generator, dtype=torch.float64).tolist() == point["torch_rand"]
        assert np.random.RandomState(seed).rand(3).tolist() == point["numpy_rand"]
