"""Golden draws of per-image random streams. (The index streams among the rng entries are tested with the datasets.)"""

import pytest
import torch

from edm_fast.sampling import StackedRandomGenerator
from helpers import golden_cases as g

ENTRIES = g.entries("rng", lambda entry: "order" in entry["config"])


def draw(rnd, kind, config):
    n = len(config["seeds"])
    operation, *dtype = kind.split()
    if operation == "randint":
        return rnd.randint(config["label_dim"], size=[n])
    return rnd.randn([n, *config["shape"]], dtype=getattr(torch, *dtype))


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_golden(entry):
    config, arrays = entry["config"], g.arrays(entry)
    rnd = StackedRandomGenerator("cpu", config["seeds"])
    got = [(kind, draw(rnd, kind, config)) for kind in config["order"]]
    wanted = {"randint": ["labels"], "randn float32": ["latents"]}
    wanted["randn float64"] = sorted(name for name in arrays if name[:5] == "noise" and name[5:].isdigit())
    for kind, value in got:
        g.check(entry, wanted[kind].pop(0), value)


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_golden_without_labels(entry):
    config = entry["config"]
    rnd = StackedRandomGenerator("cpu", config["seeds"])
    got = [draw(rnd, kind, config) for kind in config["order"] if kind != "randint"]
    assert got[0].dtype == torch.float32 and got[1].dtype == torch.float64
    g.check(entry, "noise0_without_labels", got[1])
