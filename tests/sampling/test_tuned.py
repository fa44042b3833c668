"""Sampler files: what is written is read again, and what is wrong with one is one line."""

import dataclasses
import json

import pytest
import torch

from edm_fast import load_sampler, sample
from edm_fast.checkpoint import weights_digest
from edm_fast.errors import UserError
from edm_fast.sampling import TunedSampler, save_sampler
from helpers.tiny_networks import tiny

LEVELS = [80.0, 5.0, 0.5, 0.0]
NET = tiny(img_channels=1)
ERROR = {
    "bound": 1.0,
    "statistic": "mean",
    "mean": 0.8,
    "se": 0.05,
    "median": 0.7,
    "p95": 1.2,
    "worst": 1.5,
    "images": 40,
    "seeds": "24-63",
}
TRUTH = {"solver": "heun", "num_steps": 256, "precision": "exact", "converged": 0.01, "converged_seeds": "0-3"}
TUNED = TunedSampler(
    settings={"solver": "ipndm", "order": 3, "levels": LEVELS},
    evaluations=3,
    precision="fp32",
    error=ERROR,
    truth=TRUTH,
    checkpoint={"name": "tiny.safetensors", "digest": weights_digest(NET)},
    versions={"edm_fast": "0.1.0", "torch": "2.13.0", "device": "cpu"},
)


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a" / "tiny.sampler.json"
    save_sampler(path, TUNED)
    found = load_sampler(path, NET)
    assert found == TUNED
    assert found.describe() == (
        "3 evaluations, certified within 1 level of the 256-step solution in the mean (of 40 images: mean 0.80, "
        "median 0.70, 95th percentile 1.20, worst 1.50)"
    )
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(NET, x, **found.settings), sample(NET, x, solver="ipndm", order=3, levels=LEVELS))


def test_another_checkpoint_is_refused(tmp_path):
    path = tmp_path / "tiny.sampler.json"
    save_sampler(path, TUNED)
    other = tiny(img_channels=1)
    next(other.parameters()).data.view(-1)[0] += 1e-3
    with pytest.raises(UserError, match="tiny.sampler.json: the sampler was tuned for tiny.safetensors, whose weights"):
        load_sampler(path, other)


def changed(path, value):
    """The file with one value changed; without a value, removed."""
    found = json.loads(json.dumps({"format": "edm-fast sampler 1", **dataclasses.asdict(TUNED)}))
    *folders, name = path
    inner = found
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    return json.dumps(found)


FAULTS = {
    "truncated": (changed(["evaluations"], 3)[:200], "cut short"),
    "binary": ("\0\1", "no JSON"),
    "another file": ("[]", "format is 'list'"),
    "another version": (changed(["format"], "edm-fast sampler 2"), "expected 'edm-fast sampler 1'"),
    "unknown key": (changed(["sover"], "heun"), "unknown key sover"),
    "unknown key inside": (changed(["error", "best"], 0.1), "unknown key error.best"),
    "missing key": (changed(["error", "worst"], None), "the key error.worst is missing"),
    "no number": (changed(["error", "mean"], "0.8"), "error.mean is '0.8'; expected a number"),
    "not finite": (changed(["error", "mean"], float("nan")), "error.mean is 'nan'"),
    "truth value": (changed(["evaluations"], True), "evaluations is 'True'"),
    "rising": (changed(["settings", "levels"], [80.0, 0.5, 5.0, 0.0]), "expected falling levels"),
    "no levels": (changed(["settings", "levels"], None), "lack the solver or the list of levels"),
    "levels of text": (changed(["settings", "levels"], ["a", "b"]), "expected a name or numbers"),
    "unknown solver": (changed(["settings", "solver"], "huen"), "solver is 'huen'"),
    "unknown option": (changed(["settings", "eta"], 1), "has no option eta"),
    "not of the solver": (changed(["settings", "guidance"], 2), "settings have guidance"),
    "another cost": (changed(["evaluations"], 4), "cost 3 evaluations; expected 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(fault, tmp_path):
    text, line = FAULTS[fault]
    path = tmp_path / "bad.sampler.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_sampler(path)
    assert str(caught.value).startswith(f"{path}: ") or "bad.sampler.json is no JSON" in str(caught.value)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="none.json: No such file"):
        load_sampler(tmp_path / "none.json")


def test_a_bad_one_is_never_written(tmp_path):
    bad = dataclasses.replace(TUNED, settings={**TUNED.settings, "levels": [80.0, 0.5, 5.0, 0.0]})
    with pytest.raises(UserError, match="falling"):
        save_sampler(tmp_path / "a.json", bad)
    assert not list(tmp_path.iterdir())
