"""Golden options of the generate command, integer lists, and how seeds are dealt to batches and ranks."""

import math

import click
import pytest

from edm_fast.cli._options import parse_int_list
from edm_fast.cli.generate import command
from edm_fast.sampling import deal_seeds
from helpers import golden_cases as g


def cases(key, where=lambda case: True):
    found = []
    for entry in g.entries("cli", lambda entry: key in entry["config"]):
        for i, case in enumerate(entry["config"][key]):
            if where(case):
                found.append(pytest.param(entry, case, id=f"{entry['id']}/{key}{i}"))
    return found


def generates(case):
    return case["command"] == command.name or case["command"] == "generate"


@pytest.mark.parametrize(("entry", "case"), cases("parsed", generates))
def test_golden_options(entry, case):
    params = command.make_context("generate", list(case["args"])).params
    for name, want in case["params"].items():
        if isinstance(want, float) and math.isfinite(want):
            assert params[name] == pytest.approx(want, rel=entry["tolerance"].get("floats_rtol", 0)), name
        else:
            assert params[name] == want, name


@pytest.mark.parametrize(("entry", "case"), cases("rejected", generates))
def test_golden_rejected(entry, case):
    with pytest.raises(click.ClickException) as caught:
        command.make_context("generate", list(case["args"]))
    assert type(caught.value).__name__ == case["error"]


@pytest.mark.parametrize(("entry", "case"), cases("int_lists"))
def test_golden_int_lists(entry, case):
    text, want = case
    assert parse_int_list(text) == want


@pytest.mark.parametrize(("entry", "case"), cases("cases", lambda case: "batches_per_rank" in case))
def test_golden_seed_batches(entry, case):
    seeds = [case["first_seed"] + i for i in range(case["num_seeds"])]
    parts = deal_seeds(seeds, case["max_batch"], case["world_size"])
    got = [[part for part in parts[rank :: case["world_size"]] if part] for rank in range(case["world_size"])]
    assert got == case["batches_per_rank"]
