"""Averages of other widths from golden snapshots, by the command, against those of the published one."""

import hashlib
import shutil

import numpy as np
import pytest
import torch

from edm_fast.checkpoint import load
from edm_fast.cli._widths import parse_widths
from edm_fast.errors import UserError
from edm_fast.training import images_of, stored_averages
from helpers import golden_cases as g
from helpers.command_line import refused, run

ENTRIES = g.edm2("phema")


@pytest.fixture
def snapshots(request, tmp_path):
    """A folder of the snapshots of an entry, and other files."""
    folder = tmp_path / "run"
    folder.mkdir()
    for stored in request.getfixturevalue("entry")["config"]["inputs"]:
        shutil.copy(g.path({}, stored["file"]), folder)
    (folder / "training-state-0000004.pt").write_bytes(b"")
    (folder / "network-snapshot-0000004.pkl").write_bytes(b"")
    return folder


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_golden_phema(entry, snapshots, tmp_path):
    arrays, listed = g.arrays(entry), entry["config"]["listed"]
    present = {path.name for path in snapshots.iterdir()}
    found = [{"file": s.path.name, "nimg": s.nimg, "std": s.std} for s in stored_averages(snapshots)]
    assert found == [one for one in listed if one["file"] in present]
    result = run("ema", "reconstruct", f"--indir={snapshots}", "--list")
    assert result.exit_code == 0 and all(one["file"] in result.output for one in found)
    runs = entry["config"]["runs"]
    for kimg in {wanted["outkimg"] for wanted in runs}:
        stds = ",".join(str(wanted["outstd"]) for wanted in runs if wanted["outkimg"] == kimg)
        args = [f"--indir={snapshots}", f"--outdir={tmp_path / 'out'}", f"--std={stds}", "--format=pkl"]
        result = run("ema", "reconstruct", *args, *([] if kimg is None else [f"--kimg={kimg}"]))
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(wanted["file"] for wanted in runs)
    for wanted in runs:
        state = load(tmp_path / "out" / wanted["file"]).state_dict()
        name = wanted["file"].removesuffix(".pkl")
        assert {key for key in arrays if key.startswith(f"{name}/")} == {f"{name}/{key}" for key in state}
        same = 0
        for key, value in state.items():
            assert value.dtype == torch.float16
            g.check(entry, f"{name}/{key}", value.float(), arrays[f"{name}/{key}"].astype(np.float32))
            same += hashlib.sha256(value.float().numpy().tobytes()).hexdigest()[:16] == wanted["sha256"][key]
        assert same > 0.8 * len(state)  # the others are off by a rounding to half


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_reconstruct_refuses(entry, snapshots, tmp_path):
    common = ["ema", "reconstruct", f"--indir={snapshots}", f"--outdir={tmp_path / 'out'}"]
    assert "expected --std and --outdir" in refused(*common)
    assert "expected one of these times: 1, 2, 3 and 1 more" in refused(*common, "--std=0.1", "--kimg=5")
    assert "name different files" in refused(*common, "--std=0.1,0.1001")
    assert "no snapshots" in refused(*common, "--std=0.1", "--prefix=other")
    shutil.copy(snapshots / "network-snapshot-0000001-0.050.pkl", snapshots / "again-0000001-0.050.pkl")
    assert "of one time and width" in refused(*common, "--std=0.1")
    first = run(*common, "--std=0.1", "--prefix=network-snapshot", "--instd=0.1")
    assert first.exit_code == 0 and "1 average of 4 snapshots" in first.output
    again = run(*common, "--std=0.1", "--prefix=network-snapshot", "--instd=0.1", "--skip-existing")
    assert "0 averages" in again.output
    # the width that was tracked, to the rounding of half precision
    (path,) = (tmp_path / "out").iterdir()
    tracked = load(snapshots / "network-snapshot-0000004-0.100.pkl").state_dict()
    for key, value in load(path).state_dict().items():
        torch.testing.assert_close(value, tracked[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("0.1,0.05,0.1", [0.05, 0.1]),
        ("0.010,0.015,...,0.030", [0.01, 0.015, 0.02, 0.025, 0.03]),
        ("0.01,0.02,...,0.04,0.1,0.15,...,0.25", [0.01, 0.02, 0.03, 0.04, 0.1, 0.15, 0.2, 0.25]),
    ],
)
def test_lists_of_widths(text, widths):
    assert parse_widths(text) == pytest.approx(widths, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "...",
        "0.1,...,0.2",
        "0.1,0.2,...",
        "0.1,0.1,...,0.2",
        "0.01,0.02,...,0.055",
        "0.1,0.2,...,0.2",
        "0.289",
        "0",
        "x",
    ],
)
def test_no_lists_of_widths(text):
    with pytest.raises(UserError):
        parse_widths(text)


def test_times_in_file_names():
    assert [images_of(kimg) for kimg in (1, 2, 33554, 2147483)] == [1024, 2048, 33554432, 2147483648]
    with pytest.raises(UserError, match="no multiple of 1024"):
        images_of(42)
