"""The index stream against golden orders."""

from itertools import islice

import pytest

from edm_fast.data import InfiniteSampler
from helpers import golden_cases as g


def is_stream(entry):
    return any("dataset_size" in run for run in entry["config"].get("runs", []))


@pytest.mark.parametrize("entry", g.entries("rng", is_stream), ids=g.entry_id)
def test_golden(entry):
    for run in entry["config"]["runs"]:
        want = g.arrays(entry)[run["name"]]
        sampler = InfiniteSampler(range(run["dataset_size"]), **run["kwargs"])
        g.check(entry, run["name"], list(islice(sampler, len(want))))
