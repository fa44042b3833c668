"""edm-fast convert between all formats, and its one-line refusals."""

import os

import pytest
import torch

import golden_cases as g
from edm_fast import checkpoint
from edm_fast.cli import main

SNAPSHOTS = g.entries("checkpoints", lambda e: e.get("expect") == "load")
SOURCE = str(g.path(SNAPSHOTS[0], SNAPSHOTS[0]["config"]["file"]))


def run(*args):
    """Exit code of the program."""
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, args)])
    return caught.value.code or 0


def state(path, **options):
    return checkpoint.load(path, **options).state_dict()


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_round_the_formats(tmp_path, capsys):
    names = [SOURCE, tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.pkl", tmp_path / "c.safetensors"]
    for source, dest in zip(names, names[1:], strict=False):
        assert run(source, dest) == 0
        out = capsys.readouterr().out
        assert f"wrote {dest}" in out and SNAPSHOTS[0]["config"]["class"] in out
        assert same(state(SOURCE), state(dest))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


def test_training_state(tmp_path):
    for entry in g.entries("checkpoints", lambda e: "param_groups" in e["config"]):
        source = g.path(entry, entry["config"]["file"])
        assert run(source, tmp_path / "net", "--overwrite") == 0
        assert same(state(tmp_path / "net"), state(source, key="net"))


def test_inspect_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for entry in SNAPSHOTS:
        assert run("--inspect", g.path(entry, entry["config"]["file"])) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in (*entry["config"]["state_dict"], *entry["config"]["kwargs"]))
        assert (entry["config"]["loss_fn"] or "loss_fn: None") in out
    assert os.listdir(tmp_path) == []


def test_refusals(tmp_path, capsys):
    (tmp_path / "there").write_text("")
    hostile = [
        str(g.path(e, e["config"]["file"])) for e in g.entries("checkpoints", lambda e: e.get("expect") == "reject")
    ]
    cases = [
        [SOURCE],
        ["--inspect", SOURCE, tmp_path / "x"],
        [tmp_path / "none.pkl", tmp_path / "x"],
        [SOURCE, tmp_path / "there"],
        [SOURCE, tmp_path / "there" / "x.safetensors"],
        [SOURCE, tmp_path / "x", "--key", "net"],
        [SOURCE, tmp_path / "x", "--sha256", "0" * 64],
        *([path, tmp_path / "x"] for path in hostile),
    ]
    for args in cases:
        assert run(*args) == 2, args
        captured = capsys.readouterr()
        assert captured.err.startswith("Error: ") and captured.err.count("\n") == 1, captured.err
        assert os.listdir(tmp_path) == ["there"]


def test_empty_destination(tmp_path, monkeypatch, capsys):
    """It would be the current folder."""
    monkeypatch.chdir(tmp_path)
    assert run(SOURCE, "") == 2 and "empty text; expected a path" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_overwrite(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    assert run(SOURCE, path) == 0
    before = path.read_bytes()
    assert run(SOURCE, path) == 2 and "--overwrite" in capsys.readouterr().err
    assert run(SOURCE, path, "--overwrite") == 0
    assert run(path, path, "--overwrite") == 2
    (tmp_path / "d.pkl").mkdir()
    assert run(SOURCE, tmp_path / "d.pkl", "--overwrite") == 2
    assert path.read_bytes() == before
