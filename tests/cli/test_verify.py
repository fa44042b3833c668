"""edm-fast verify: the table, its JSON, exit codes."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from edm_fast import backend, cli
from edm_fast.cli import verify
from edm_fast.evaluation.verify import small_calls
from helpers.tiny_networks import tiny_checkpoint


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(verify, "real_calls", small_calls)  # seconds instead of half a minute
    return lambda *args: CliRunner().invoke(cli.main, ["verify", "--device=cpu", *args])


def test_table_and_json(run, tmp_path):
    network, path = tiny_checkpoint(tmp_path), tmp_path / "new" / "verify.json"
    result = run(f"--network={network}", f"--json={path}")
    assert result.exit_code == 0, result.output
    for word in ("group_norm_silu", "fused ops", "accelerated bf16", "within its budget"):
        assert word in result.output
    found = json.loads(path.read_text())
    assert found["ok"] and found["settings"]["torch"]
    assert {row["op"] for row in found["ops"]} == set(backend.ops())
    assert {row["sigma"] for row in found["networks"] if "sigma" in row} == {0.01, 0.5, 80.0}


def test_a_wrong_backend_fails(run, tmp_path, monkeypatch):
    op = backend.ops()["conv2d"]
    right = op.implementations["cpu"]
    wrong = dataclasses.replace(right, forward=lambda args: op.reference(args) * 1.01, slower=None)
    monkeypatch.setitem(op.implementations, "cpu", wrong)
    result = run(f"--network={tiny_checkpoint(tmp_path)}")
    assert result.exit_code == 1
    failed = [line for line in result.output.splitlines() if line.endswith("FAILED")]
    assert any("conv2d" in line and "cpu" in line for line in failed) and any("fused ops" in line for line in failed)


@pytest.mark.parametrize("args", [["--network=nope"], ["--device=tpu"], ["--json"], ["--network="]])
def test_bad_input_is_one_line(run, args):
    result = run(*args)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
