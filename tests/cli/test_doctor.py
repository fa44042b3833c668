"""edm-fast doctor: the report, its JSON, and exit code 1 when a backend computes something else."""

import dataclasses
import json
import os
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
    assert set(report["ops"]) == set(backend.ops()) >= {"upfirdn", "solver_update"}
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

    def wrong(args):
        y, d = op.reference(args)
        return y * planted, d

    changed = dataclasses.replace(op.implementations["cpu"], forward=wrong)
    monkeypatch.setitem(op.implementations, "cpu", changed)
    result = CliRunner().invoke(doctor.command)
    assert result.exit_code == 1 and "FAILED" in result.output


def test_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "_failure", "the compiled part is not there (a test)")
    result = CliRunner().invoke(doctor.command)
    assert result.exit_code == 0, result.output
    assert "compiled part: no: the compiled part is not there" in result.output
    assert "not cpu: the compiled part is not there" in result.output


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_layers_of_real_size_are_asked_about():
    """A small convolution stays with torch, which is no sign that there is no native one."""
    text = CliRunner().invoke(doctor.command).output
    assert "conv2d            cpu for 9 of 12 layers, reference for 3 of 12 layers" in text
    assert "not cpu for 2 of 12: torch is as fast for a 1x1 kernel" in text


@pytest.mark.parametrize("name", ["cpu", "cuda", "reference"])
def test_whole_networks_are_tried_on_the_backend_asked_for(name):
    able = {"cpu": native.cpu_reason() is None, "cuda": False, "reference": True}
    with backend.use_backend(name):
        result = CliRunner().invoke(doctor.command, ["--json"])
    networks = json.loads(result.output)["networks"]
    assert len(networks) == 5 and result.exit_code == (0 if able[name] else 1)
    for reason in networks.values():
        assert reason is None if able[name] else f"backend '{name}' was requested, but" in reason, reason


BROKEN = [
    "RuntimeError('no driver')",
    "AttributeError('x')",
    "OSError('libtriton.so')",
    "ImportError('x')",
    "SystemError()",
    "SystemExit('no driver')",
]


def test_a_broken_triton_is_a_reason(tmp_path):
    """Whatever it raises, also where Triton is asked for: by the doctor, by an op, by its interpreter."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text("import os; exec('raise ' + os.environ['BROKEN'])")
    # a process for each error, but torch is imported once
    program = (
        "import os, sys, torch; from edm_fast.cli import doctor; from edm_fast import backend, ops\n"
        "for error in sys.argv[1:]:\n"
        "    os.environ['BROKEN'] = error\n"
        "    if os.fork() == 0:\n"
        "        print(error.partition('(')[0], doctor.triton_part())\n"
        "        op = backend.ops()['attention']; choice = op.choose(op.arguments(torch.ones(1, 3, 4, 4)))\n"
        "        print(error.partition('(')[0], choice.reasons['triton']); sys.exit()\n"
        "    assert os.wait()[1] == 0, error\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1", "BROKEN": BROKEN[0]}
    done = subprocess.run([sys.executable, "-c", program, *BROKEN], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(BROKEN)
    for line in lines:
        assert f"triton does not load ({line.split()[0]}" in line


@pytest.mark.parametrize("name, code, text", [("reference", 0, "all is well"), ("nonsense", 1, "unknown backend")])
def test_requested_backend(name, code, text, tmp_path):
    env = {"EDM_FAST_BACKEND": name, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "edm_fast", "doctor"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and text in done.stdout and done.stderr == ""
