"""The course of a study: points, files, a kill in between, other settings, and a page that a browser shows."""

import csv
import dataclasses
import json

import pytest
from click.testing import CliRunner

from edm_fast import cli, studies
from edm_fast.errors import UserError
from edm_fast.studies import _study
from helpers.pages import check_in_a_browser, check_text
from helpers.tiny_networks import tiny_checkpoint


def measure(session, point):
    if point["n"] == 3:
        raise UserError("three is <not> measured")
    if point["n"] == 4:
        return {"value": float("nan")}
    return {"value": 1 / (1 + point["n"]), "errors": [0.5] * len(session.seeds)}


def show(rows, session):
    picture = session.keep("noise", session.draw(lambda net, latents, labels, randn_like: latents))
    return [
        studies.Chart("Fast & <small>", "n", "value", {"a": [(row["n"] + 1, row["value"]) for row in rows]}, "xy"),
        studies.Grid("Table", ["n", "value", "other"], [[str(row["n"]), row["value"], 7.0] for row in rows], best=True),
        studies.Pictures("Pictures", {"noise": picture}),
    ]


PROBE = studies.Study(
    name="probe",
    summary="What a probe finds",
    words=("A paragraph with <b>marks</b>.",),
    points=lambda session: [{"n": n} for n in session.options["numbers"]],
    measure=measure,
    show=show,
    options={"numbers": studies.Option("ints", [0, 1, 2, 3, 4], "What to measure.")},
    seeds="0-2",
)


@pytest.fixture
def probe(monkeypatch):
    monkeypatch.setitem(studies.registry(), "probe", PROBE)


def run(*args):
    return CliRunner().invoke(cli.main, ["study", *args])


def test_files_kills_and_other_settings(tmp_path, probe, monkeypatch):
    network, out = tiny_checkpoint(tmp_path), tmp_path / "out"
    args = ("probe", f"--network={network}", f"--outdir={out}", "--device=cpu")

    def killed(session, point):
        if point["n"] == 2:
            raise KeyboardInterrupt
        return measure(session, point)

    monkeypatch.setitem(studies.registry(), "probe", dataclasses.replace(PROBE, measure=killed))
    assert run(*args).exit_code == 130
    assert [path.name for path in out.iterdir()] == ["probe.json"]
    left = json.loads((out / "probe.json").read_text())["rows"]
    assert [row["n"] for row in left] == [0, 1]

    found = []
    counted = dataclasses.replace(PROBE, measure=lambda s, p: found.append(p["n"]) or measure(s, p))
    monkeypatch.setitem(studies.registry(), "probe", counted)
    assert "expected no --resume" in run(*args, "--resume", "--seeds=0-3").stderr
    assert not found
    result = run(*args, "--resume")
    assert result.exit_code == 0, result.output
    assert found == [2, 3, 4]
    document = json.loads((out / "probe.json").read_text())
    assert document["rows"][:2] == left and document["rows"][4]["reason"] == "value is nan"
    assert document["command"] == f"edm-fast study probe --network={network} --device=cpu"
    assert [line["value"] for line in csv.DictReader((out / "probe.csv").open())][:3] == ["1.0", "0.5", str(1 / 3)]
    assert {path.name for path in out.iterdir()} == {f"probe.{kind}" for kind in ("csv", "json", "png", "html")} | {
        "probe-pictures"
    }
    # what has no numbers is tried again, the rest is not; without --resume everything is
    found.clear()
    assert run(*args, "--resume").exit_code == 0 and found == [3, 4]
    assert "will be replaced" in run(*args).stderr and found[2:] == [0, 1, 2, 3, 4]
    check_text(out / "probe.html")
    text = (out / "probe.html").read_text()
    assert "A paragraph with &lt;b&gt;marks" in text and "three is &lt;not&gt; measured" in text


def test_the_page_in_a_browser(tmp_path, probe):
    out = tmp_path / "out"
    assert run("probe", f"--network={tiny_checkpoint(tmp_path)}", f"--outdir={out}", "--device=cpu").exit_code == 0
    check_in_a_browser(out / "probe.html", tmp_path)
    broken = tmp_path / "broken.html"
    broken.write_text((out / "probe.html").read_text().replace("<p>", "<script>console.error(1)</script><p>", 1))
    with pytest.raises(AssertionError, match="CONSOLE"):
        check_in_a_browser(broken, tmp_path)


@pytest.mark.parametrize(
    "args",
    [
        ["nope"],
        ["probe", "--seeds=3-1"],
        ["probe", "--seeds=1,1"],
        ["probe", "--numbers=x"],
        ["probe", "--network=nope"],
        ["probe", "--device=abacus"],
        ["probe", "--resume", "--outdir=other"],
    ],
)
def test_bad_input_is_one_line(args, tmp_path, probe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/probe.json").write_text("{}")
    result = run(*args)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_registry():
    assert {"precision"} <= set(studies.registry())
    for name, study in studies.registry().items():
        assert study.name == name and not study.summary.endswith(".")
    assert _study.Study is studies.Study


def test_an_unknown_study_is_told_which_there_are():
    result = run("trunkation")
    assert result.exit_code == 2
    assert "'trunkation' (near names: truncation); expected one of design, ema, precision, " in result.output
