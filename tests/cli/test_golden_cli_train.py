"""Golden options of the training command: parsed, refused, and the settings derived from them."""

import json
import math

import click
import pytest
from click.testing import CliRunner

from edm_fast.cli import main
from edm_fast.cli.train import command
from helpers import golden_cases as g
from helpers import tiny_training as tiny


def cases(key, where=lambda case: True):
    return [
        pytest.param(entry, case, id=f"{entry['id']}/{key}{i}")
        for entry in g.entries("cli", lambda entry: key in entry["config"])
        for i, case in enumerate(entry["config"][key])
        if where(case)
    ]


def trains(case):
    return case["command"] == "train"


def same(got, want, rtol, where=""):
    """Equal, numbers up to rtol."""
    if isinstance(want, dict):
        assert sorted(got) == sorted(want), where
        for key in want:
            same(got[key], want[key], rtol, f"{where}/{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for i, value in enumerate(want):
            same(got[i], value, rtol, f"{where}/{i}")
    elif isinstance(want, float) and math.isfinite(want):
        assert got == pytest.approx(want, rel=rtol), where
    else:
        assert got == want, where


@pytest.mark.parametrize(("entry", "case"), cases("parsed", trains))
def test_golden_options(entry, case):
    params = command.make_context("train", list(case["args"])).params
    got = {name: params[name] for name in case["params"]}
    same(got, case["params"], entry["tolerance"].get("floats_rtol", 0))


@pytest.mark.parametrize(("entry", "case"), cases("rejected", trains))
def test_golden_rejected(entry, case):
    with pytest.raises(click.ClickException) as caught:
        command.make_context("train", list(case["args"]))
    assert type(caught.value).__name__ == case["error"]


def option(args, name):
    return next((arg.split("=", 1)[1] for arg in args if arg.startswith(f"--{name}=")), None)


def data_sets():
    """Every data set that some case reads successfully: name -> whether some case uses its labels."""
    found = {}
    for _, case in (param.values for param in cases("train_options")):
        path = option(case["args"], "data")
        labels = option(case["args"], "cond") in ("1", "true", "True")
        found[path] = found.get(path, False) or labels
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The stand-ins the entry's note describes, in the current folder: 8 images of the resolution named, old runs."""
    monkeypatch.chdir(tmp_path)
    for path, labels in data_sets().items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        size = int(target.stem.rpartition("x")[2])
        tiny.write_dataset(target, count=8, size=size, channels=3, classes=2 if labels else 0)
    for name in ("00003-old", "notarun"):
        (tmp_path / "training-runs" / name).mkdir(parents=True)
    for _, case in (param.values for param in cases("train_options")):
        state = option(case["args"], "resume")
        if state is not None:
            (tmp_path / state).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / state).write_bytes(b"")
    return tmp_path


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("entry", "case"), cases("train_options"))
def test_golden_settings(entry, case, folder):
    before = files_below(folder)
    result = CliRunner().invoke(main, ["train", *case["args"]])
    assert result.exit_code == 0, result.output
    assert files_below(folder) == before  # a dry run leaves nothing behind
    start = result.output.index("{")
    got, _ = json.JSONDecoder().raw_decode(result.output[start:])
    same(got, case["options"], entry["tolerance"].get("floats_rtol", 0))


@pytest.mark.parametrize(("entry", "case"), cases("train_errors"))
def test_golden_errors(entry, case, folder):
    args = case["args"] if option(case["args"], "outdir") else ["--outdir=training-runs", *case["args"]]
    before = files_below(folder)
    result = CliRunner().invoke(main, ["train", *args])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert files_below(folder) == before
