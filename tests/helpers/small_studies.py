"""Studies of a tiny network: killed in between, resumed, and their pages."""

import dataclasses
import json

from click.testing import CliRunner

from edm_fast import cli, studies
from helpers.pages import check_text
from helpers.tiny_networks import tiny_checkpoint


def run(name, *args):
    return CliRunner().invoke(cli.main, ["study", name, "--device=cpu", *args])


def killed_and_resumed(monkeypatch, folder, name, *options, points=2, **network):
    """Run a study of a tiny network, killed after `points` points, then resumed. The folder and rows of the results."""
    study, done = studies.registry()[name], []

    def measure(session, point):
        if len(done) == points:
            raise KeyboardInterrupt
        done.append(point)
        return study.measure(session, point)

    out = folder / "out"
    own = [f"--network={tiny_checkpoint(folder, **network)}"] if study.needs_network else []
    args = (name, *own, f"--outdir={out}", *options)
    with monkeypatch.context() as patch:
        patch.setitem(studies.registry(), name, dataclasses.replace(study, measure=measure))
        assert run(*args).exit_code == 130
    left = json.loads((out / f"{name}.json").read_text())["rows"]
    result = run(*args, "--resume")
    assert result.exit_code == 0, result.output
    rows = json.loads((out / f"{name}.json").read_text())["rows"]
    assert len(left) == points < len(rows) and [row for row in rows if row in left] == left
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / f"{name}.csv").read_text().splitlines()) == len(rows) + 1
    check_text(out / f"{name}.html")
    return out, rows
