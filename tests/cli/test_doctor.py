"""edm-fast doctor: the report, its JSON, and exit code 1 when a backend computes something else."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from edm_fast import backend, native
from edm_fast.cli import doctor


def test_json_report():
    result = CliRunner().invoke(doctor.command, ["--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["ok"] and torch.__version__.startswith(report["versions"]["torch"].split("+")[0])
    assert set(report["ops"]) == {"upfirdn", "group_norm_silu", "attention", "conv2d", "solver_update"}
    for op, row in report["ops"].items():
        assert set(row["reasons"]) | {row["backend"]} >= {"cpu", "triton", "cuda"}, op
        assert all(row["reasons"].values())
    tested = {(row["op"], row["backend"]) for row in report["self_test"]}
    assert {(op, "reference") for op in report["ops"]} <= tested
    assert report["native"]["available"] == (native.cpu_reason() is None)
    if report["native"]["available"]:
        assert {("upfirdn", "cpu"), ("solver_update", "cpu")} <= tested
        assert report["native"]["isa"] in report["native"]["isas"]
    assert report["cuda"]["available"] or report["cuda"]["reason"]
    assert report["triton"]["available"] or report["triton"]["reason"]


def test_text_report():
    result = CliRunner().invoke(doctor.command)
    assert result.exit_code == 0, result.output
    for word in ("compiled part:", "cuda:", "triton:", "solver_update", "all is well"):
        assert word in result.output


@pytest.mark.parametrize("planted", [1.001, float("nan")])
def test_wrong_numbers_are_found(monkeypatch, planted):
    op = backend.ops()["solver_update"]

    def wrong(*args, **kwargs):
        y, d = op.reference(*args, **kwargs)
        return y * planted, d

    monkeypatch.setitem(op.candidates, "cpu", backend.Candidate(wrong, lambda *args, **kwargs: None))
    result = CliRunner().invoke(doctor.command)
    assert result.exit_code == 1 and "FAILED" in result.output


def test_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "_failure", "the compiled part is not there (a test)")
    native.cuda_reason.cache_clear()
    try:
        result = CliRunner().invoke(doctor.command)
    finally:
        native.cuda_reason.cache_clear()
    assert result.exit_code == 0, result.output
    assert "compiled part: no: the compiled part is not there" in result.output
    assert "not cpu: the compiled part is not there" in result.output


@pytest.mark.parametrize("name, code, text", [("reference", 0, "all is well"), ("nonsense", 1, "unknown backend")])
def test_requested_backend(name, code, text, tmp_path):
    env = {"EDM_FAST_BACKEND": name, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "edm_fast", "doctor"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and text in done.stdout and done.stderr == ""
