"""edm-fast tune-kernels: the tables shown, cleared, and filled until their times agree; doctor has them too."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from edm_fast import cli, native
from edm_fast.cli import doctor
from edm_fast.plan import _table, _tune
from edm_fast.plan._table import MAX_COUNT, Measurement
from helpers.tiny_networks import tiny_checkpoint

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path / "cache"))
    _table._tables.clear()
    yield tmp_path / "cache/plans"
    _table._tables.clear()


def run(*args):
    return CliRunner().invoke(cli.main, ["tune-kernels", *args])


def store(folder, **rows):
    folder.mkdir(parents=True)
    rows = {key.replace("_", " "): dataclasses.asdict(row) for key, row in rows.items()}
    (folder / "conv2d-7-here.json").write_text(json.dumps(rows))


ROWS = {
    "direct_conv2d_1": Measurement(0.002, 0.013, date="2026-11-01T10:00:00+00:00"),
    "winograd2_conv2d_1": Measurement(0.001, 0.5, date="2026-11-03T10:00:00+00:00", count=2),
    "winograd4_conv2d_1": Measurement(
        fault="its error is 1.0e+00, allowed are 1.0e-06", date="2026-11-02T10:00:00+00:00"
    ),
}
SUMMARY = "3 entries, measured 2026-11-01 to 2026-11-03, 1 with a wide spread, 1 dropped"


def test_show(folder):
    assert run().output == f"no tables in {folder}\n"
    store(folder, **ROWS)
    assert run().output == f"{folder}/conv2d-7-here.json:\n  {SUMMARY}\n"
    shown = run("--show").output
    assert "2026-11-03  measured 2x      1.000 ms  spread   50.0%  winograd2 conv2d 1" in shown
    assert "measured 1x  dropped: its error is 1.0e+00, allowed are 1.0e-06  winograd4 conv2d 1" in shown


def test_clear(folder):
    store(folder, **ROWS)
    (folder / "gpu.json").write_text("broken")
    assert "gpu.json:\n  empty, or not readable" in run().output
    result = run("--clear")
    assert result.exit_code == 0 and result.output.endswith(f"no tables in {folder}\n")
    assert "removed " in result.output and not [*folder.glob("*.json")]


def test_doctor_shows_the_tables(folder):
    store(folder, **ROWS)
    found = doctor.table_part()[str(folder / "conv2d-7-here.json")]
    assert found["summary"] == SUMMARY and found["entries"] == 3 and found["wide_spreads"] == 1
    assert found["oldest"][:10] == "2026-11-01" and found["newest"][:10] == "2026-11-03"
    text = CliRunner().invoke(doctor.command).output
    assert f"measured kernels: {folder}/conv2d-7-here.json\n  {SUMMARY}\n  dropped: winograd4 conv2d 1: its" in text


def test_doctor_tells_one_fault_of_many_entries_once(folder):
    fault = ROWS["winograd4_conv2d_1"]
    store(folder, **ROWS, winograd4_conv2d_2=fault, winograd4_conv2d_3=fault)
    text = CliRunner().invoke(doctor.command).output
    assert text.count("dropped: ") == 1 and f"  dropped: winograd4 conv2d 1 and 2 more: {fault.fault}\n" in text


@needs_native
def test_a_network_is_measured_until_times_agree(folder, tmp_path, monkeypatch):
    spreads, calls = iter([0.5, 0.4, 0.0]), []

    def measure(shape, algorithms, cold):
        calls.append(shape)
        spread = next(spreads) if shape == calls[0] else 0.0
        return {a: Measurement(1.0, spread) for a in algorithms}

    monkeypatch.setattr(_tune, "measure", measure)
    result = run(f"--network={tiny_checkpoint(tmp_path)}", "--batch=2", "--precision=exact", "--show")
    assert result.exit_code == 0, result.output
    assert calls.count(calls[0]) == MAX_COUNT and len(calls) == len({*calls}) + MAX_COUNT - 1
    assert "0 with a wide spread, 0 dropped" in result.output and "measured 3x" in result.output
    again = run(f"--network={tiny_checkpoint(tmp_path)}", "--batch=2", "--precision=exact")
    assert again.exit_code == 0 and len(calls) == len({*calls}) + MAX_COUNT - 1


@pytest.mark.parametrize(
    "args", [["--network=nope"], ["--batch=0"], ["--batch=x"], ["--precision=int8"], ["--device=tpu"], ["--threads=0"]]
)
def test_bad_input_is_one_line(args, folder):
    result = run(*(args if args[0] != "--device=tpu" else ["--network=demo", *args]))
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert not folder.exists()
