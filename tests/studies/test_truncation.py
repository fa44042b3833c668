"""The study of few evaluations, in miniature."""

import functools

import pytest

from edm_fast.evaluation import accuracy
from edm_fast.studies import truncation
from edm_fast.studies.truncation import grids, variants
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed, run


def test_truncation(tmp_path, monkeypatch):
    monkeypatch.setattr(truncation, "EVERY_GRID", 3)
    monkeypatch.setattr(truncation, "converged", functools.partial(accuracy.converged, steps=40))
    monkeypatch.setattr(truncation, "TEACHER", {**truncation.TEACHER, "num_steps": 10})
    options = ("--seeds=0,1", "--evaluations=3,9", "--solvers=heun,euler_ancestral,ipndm,restart")
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "truncation", *options, img_channels=1)
    assert all("reason" not in row and len(row["errors"]) == 2 for row in rows)
    solvers = {(row["name"], row["grid"], row["evaluations"]): row["mean"] for row in rows if row["part"] == "solvers"}
    # a solver without its noise stays, one that always draws noise does not, nor an order too many for the steps
    assert {name for name, *_ in solvers} == {"euler_ancestral", "heun", "ipndm 2", "ipndm 3", "ipndm 4"}
    assert {grid for name, grid, n in solvers if n == 9} == {"karras"} < {grid for _, grid, n in solvers if n == 3}
    for name in ("euler_ancestral", "heun"):
        assert solvers[name, "karras", 9] < solvers[name, "karras", 3]
    # the ablation sampler with its defaults is the same Heun
    same = [row for row in rows if row["name"] in ("heun, edm", "heun, linear, none", "heun, rho 7")]
    assert len(same) == 6
    for row in same:
        assert row["mean"] == pytest.approx(solvers["heun", "karras", row["evaluations"]], rel=1e-3)
    check_in_a_browser(out / "truncation.html", tmp_path)


def test_every_solver_and_grid():
    assert {"karras", "logsnr", "time_uniform", "optimised", "gits"} <= {*grids()} and len(grids()) == 6
    names = [name for name, _ in variants()]
    assert {"heun", "ipndm 4", "dpmpp 3", "unipc 3", "er_sde 3"} <= {*names} and len(names) == len({*names})
    assert len({settings["solver"] for _, settings in variants()}) > 20


def test_bad_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("truncation", "--solvers=hoyn")
    assert result.exit_code == 2 and "solver 'hoyn'" in result.stderr
