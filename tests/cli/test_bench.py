"""edm-fast bench: files, the recorded command, the README, bad input."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from edm_fast import cli
from edm_fast.evaluation import _report
from helpers.tiny_networks import tiny_checkpoint


def run(*args):
    return CliRunner().invoke(cli.main, ["bench", *args])


def test_files_and_the_command(tmp_path):
    network, before = tiny_checkpoint(tmp_path), torch.get_num_threads()
    options = (f"--networks={network}", "--batch=1,2", "--rows=fused", "--threads=1", "--rounds=1")
    result = run("networks", "training", *options, f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == before
    files = sorted((tmp_path / "out").iterdir())
    assert [path.suffix for path in files] in ([".json", ".md", ".png"] * 2, [".json", ".md"] * 2)
    for path in files:
        assert str(path) in result.stdout
    document = json.loads(files[0].read_text())
    assert document["settings"]["threads"] == 1 and document["settings"]["rounds"] == 1
    assert document["settings"]["clock"] == "CPU time" and "1 thread, CPU time" in files[1].read_text()
    assert document["command"] == f"edm-fast bench networks training {' '.join(options)}"
    assert [(row["batch"], row["row"]) for row in document["rows"]] == [
        (batch, row) for batch in (1, 2) for row in ("reference", "fused")
    ]
    again = run("networks", *options, f"--outdir={tmp_path / 'out'}", "--resume")
    assert again.exit_code == 0 and again.stderr.count("finished before") == 2
    assert json.loads(files[0].read_text()) == document


def test_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{_report.BEGIN}\n{_report.END}\n", encoding="utf-8")
    assert run(f"--readme={readme}", f"--results={tmp_path}").output == f"{readme}: written\n"
    assert _report.NO_RESULTS in readme.read_text(encoding="utf-8")
    assert run(f"--readme={readme}", f"--results={tmp_path}").output == f"{readme}: up to date\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nope"],
        ["--networks=nope"],
        ["--networks=demo,"],
        ["--rows=nope"],
        ["--batch=0"],
        ["--batch=x"],
        ["--batch=3-1"],
        ["--threads=0"],
        ["--rounds=0"],
        ["--readme=/nowhere/README.md"],
        ["--readme=README", "--results=/nowhere"],
    ],
)
def test_bad_input_is_one_line(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("README").write_text(f"{_report.BEGIN}\n{_report.END}\n")
    result = run(*args)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert not Path("out").exists()
