"""make gpu-report without a GPU: each part's path on tiny networks, what is cut and resumed, and the pages."""

import argparse
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _gpu_ops  # noqa: E402
import _gpu_pages  # noqa: E402
import _gpu_parts  # noqa: E402
import gpu_report  # noqa: E402

from edm_fast import native  # noqa: E402
from edm_fast.evaluation import _targets  # noqa: E402
from edm_fast.evaluation._rows import ROWS  # noqa: E402

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def trial(path, seconds=100.0):
    return argparse.Namespace(file=path, device="cpu", seconds=seconds, quick=True)


def read(path):
    return json.loads(path.read_text())


@needs_native
def test_every_part_that_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_targets, "STEPS", 2)
    monkeypatch.setattr(_gpu_parts.bench, "MIN_TURN", 0.0)
    for name in ("networks", "training", "sampling"):
        _gpu_parts.places(name, trial(tmp_path / f"{name}.json"))
    _gpu_parts.ops(trial(tmp_path / "ops.json"))
    _gpu_parts.profile(trial(tmp_path / "profile.json"))
    parts = _gpu_pages.collect(tmp_path)
    assert set(parts) == set(gpu_report.MEASURED)
    for name, part in parts.items():
        assert part["complete"] and part["ok"], (name, part)
    rows = {entry["row"]: entry for entry in parts["networks"]["results"]["rows"]}
    assert rows["accelerate-fp32"]["ratio"] > 0 and "expected one of" in rows["accelerate-fp16"]["reason"]
    assert 1e-4 < rows["fused-half-bf16"]["error"] < 0.1 and rows["reference-tf32"]["error"] == 0
    assert parts["networks"]["flops"]["demo"] > 1e8
    measured = {(row["op"], row["backend"]) for row in parts["ops"]["rows"] if "ratio" in row}
    assert {("solver_update", "cpu"), ("upfirdn", "cpu"), ("conv2d", "cpu")} <= measured
    assert ("attention", "scaled_dot_product_attention") in measured
    assert all(row["bit_stable"] for row in parts["ops"]["rows"] if row["backend"] == "cpu" and "ratio" in row)
    assert all(isinstance(table, list) and table for table in parts["profile"]["tables"].values())

    for name, part in parts.items():
        gpu_report.write(tmp_path / f"{name}.json", {**part, "device": "cpu", "part_seconds": 1})
    _gpu_pages.main(tmp_path)
    page = next(tmp_path.glob("gpu-report-cpu*.md")).read_text()
    for text in ("## ops", "## networks", "## training", "## sampling", "## Products per second", "## Profile"):
        assert text in page
    shown = capsys.readouterr().out
    assert "accelerate-fp32" in shown and "build      not run" in shown
    assert shown.strip().splitlines()[-1].startswith("profile    ok")


@needs_native
def test_native_calls():
    with pytest.raises(SystemExit) as end:
        _gpu_parts.native_calls("cpu")
    assert end.value.code == 0


def test_places_are_cut_at_the_end_and_taken_up_again(tmp_path, monkeypatch):
    asked = []

    def bench(target, folder, say, networks, batches, rows, rounds, resume, **rest):
        asked.append((networks, batches))
        if networks == ["broken"]:
            raise RuntimeError("no memory\nat all")
        folder.mkdir(exist_ok=True)
        return folder / "x.json"

    monkeypatch.setattr(_gpu_parts.bench, "bench", bench)
    monkeypatch.setattr(_gpu_parts, "read", lambda path: {"rows": []})
    monkeypatch.setattr(_gpu_parts, "flops", lambda network, device: 7)
    monkeypatch.setattr(_gpu_parts, "QUICK", {"networks": [("broken", 1, ("a",)), ("fine", 2, ("b", "c"))]})
    path = tmp_path / "networks.json"
    _gpu_parts.places("networks", trial(path, seconds=-1))
    assert read(path)["cut"] == [["broken", 1, ["a"]], ["fine", 2, ["b", "c"]]] and not read(path)["complete"]
    assert list(_gpu_pages.cuts({"networks": read(path)}))[1] == "networks: fine, batch 2: b, c" and not asked
    _gpu_parts.places("networks", trial(path))
    found = read(path)
    assert asked == [(["broken"], [1]), (["fine"], [2])] and found["complete"] and not found["ok"]
    assert found["errors"] == ["broken, batch 1: RuntimeError: no memory"] and found["flops"] == {"fine": 7}


def test_the_places_hold_every_peer_and_batch():
    places = _gpu_parts.PLACES["networks"]
    assert places[0][:2] == (_gpu_parts.DDPMPP, 64)
    for name, batches in _gpu_parts.BATCHES.items():
        for batch in batches:
            rows = [row for network, size, some in places if (network, size) == (name, batch) for row in some]
            assert len(rows) == len(set(rows))
            wanted = (*_gpu_parts.PEERS, *_gpu_parts.OURS, *_gpu_parts.FUSED, *_gpu_parts.COMPILED, *_gpu_parts.TUNED)
            assert set(rows) == set(wanted)
    for target in _gpu_parts.PLACES.values():
        assert all(set(rows) <= set(ROWS) for _, _, rows in target)
    assert {layer.op for layer in _gpu_ops.layers(quick=False)} == set(_gpu_ops.backend.ops())


def test_budgets_stay_under_nine_minutes():
    assert (
        set(gpu_report.BUDGETS) == set(gpu_report.PARTS)
        and sum(gpu_report.BUDGETS.values()) + gpu_report.GRACE * len(gpu_report.MEASURED) < 540
    )
    args = gpu_report.arguments(["--budget=networks=7.5", "--parts=ops, networks"])
    assert args.budgets["networks"] == 7.5 and args.chosen == ["ops", "networks"]
    for wrong in ("--parts=nope", "--budget=nope=1", "--budget=ops=x"):
        with pytest.raises(SystemExit):
            gpu_report.arguments([wrong])


def test_finished_parts_are_not_run_again(tmp_path, monkeypatch, capsys):
    ran = []

    def part(name, complete):
        return lambda args, seconds: ran.append(name) or {"complete": complete, "ok": True, "summary": "done"}

    monkeypatch.setattr(gpu_report, "PARTS", {"build": part("build", True), "tests": part("tests", False)})
    monkeypatch.setattr(gpu_report, "run", lambda *args: {"status": 0, "output": "the table\n"})
    words = ["--device=cpu", f"--outdir={tmp_path}"]
    for more in ([], ["--resume"], ["--parts=build"]):
        assert gpu_report.main([*words, *more]) == 0
    assert ran == ["build", "tests", "tests", "build"]
    assert read(tmp_path / "build.json")["part"] == "build" and not list(tmp_path.glob(".*"))
    assert capsys.readouterr().out.endswith("the table\n")
    (tmp_path / "tests.json").write_text("{broken")
    assert not gpu_report.finished(tmp_path / "tests.json")


def test_a_command_ends_at_its_time():
    found = gpu_report.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 2)
    assert found["status"] is None and found["output"] == "begun\n" and found["seconds"] < 20
    assert gpu_report.run([sys.executable, "-c", "raise SystemExit(3)"], 20)["status"] == 3


def test_a_part_that_dies_keeps_what_it_had(tmp_path, monkeypatch):
    gpu_report.write(tmp_path / "ops.json", {"rows": [1], "summary": "1 of 2 layers"})
    monkeypatch.setattr(gpu_report, "run", lambda *args: {"status": -9, "output": "killed"})
    found = gpu_report.PARTS["ops"](gpu_report.arguments([f"--outdir={tmp_path}"]), 5)
    assert found["rows"] == [1] and not found["complete"] and "it failed; 1 of 2 layers" == found["summary"]


def test_build_installs_without_network_and_dependencies(monkeypatch):
    commands = []

    def run(command, seconds, env=None):
        commands.append((command, env))
        return {"status": 0 if "doctor" in command else 1, "output": "9.0", "seconds": 0}

    monkeypatch.setattr(gpu_report, "run", run)
    assert not gpu_report.build(gpu_report.arguments([]), 10)["ok"]
    (pip,) = [(command, env) for command, env in commands if "pip" in command]
    assert {"--no-deps", "--no-build-isolation", "-e"} <= set(pip[0]) and pip[1]["EDM_FAST_CUDA"] == "1"
    monkeypatch.setattr(gpu_report, "installed_here", lambda: True)
    assert gpu_report.build(gpu_report.arguments([]), 10)["ok"]


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path, capsys):
    words = ["--device=cpu", "--quick", f"--outdir={tmp_path}", "--parts=build,tests,sanitizer"]
    assert gpu_report.main(words) == 0
    shown = capsys.readouterr().out
    assert "tests      ok" in shown and "networks   not run" in shown
    assert "7 passed" in shown or "passed" in read(tmp_path / "tests.json")["summary"]
