"""Checkpoints are told by what is in them, whatever they are called."""

import shutil

import pytest
import torch

from edm_fast import checkpoint
from helpers import golden_cases as g
from helpers.tiny_networks import tiny, tiny_checkpoint

NAMES = ["net", "net.pkl", "net.pt", "net.safetensors", "net.ZIP", ".net.png"]


def exported(folder):
    checkpoint.save_pkl(tiny(), folder / "exported")
    return folder / "exported"


def golden(holds):
    entry = g.entries("checkpoints", lambda e: holds in e["config"])[0]
    return g.path(entry, entry["config"]["file"])


KINDS = {
    "safetensors": (tiny_checkpoint, "ema"),
    "pickle of ours": (exported, "ema"),
    "published pickle": (lambda folder: golden("state_dict"), "ema"),
    "training state": (lambda folder: golden("param_groups"), "net"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_by_content(kind, tmp_path):
    make, key = KINDS[kind]
    source = make(tmp_path)
    want, content = checkpoint.load(source, key=key).state_dict(), checkpoint.inspect(source)
    for name in NAMES:
        path = shutil.copyfile(source, tmp_path / name)
        found = checkpoint.load(path, key=key).state_dict()
        assert list(found) == list(want) and all(torch.equal(found[k], want[k]) for k in want), name
        assert checkpoint.inspect(path) == content, name


def test_a_link_and_a_name_of_several_lines(tmp_path):
    (tmp_path / "link.pt").symlink_to(tiny_checkpoint(tmp_path))
    odd = shutil.copyfile(tmp_path / "tiny.safetensors", tmp_path / "a\nb ü.pkl")
    for path in (tmp_path / "link.pt", odd, str(odd)):
        assert list(checkpoint.load(path).state_dict()) == list(tiny().state_dict())
