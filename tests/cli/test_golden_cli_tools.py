"""Golden options of the fid and dataset commands: parsed and refused."""

import click
import pytest

from edm_fast.cli import dataset, fid
from helpers import golden_cases as g

# the published dataset command has no verbs of its own; here its flags belong to the default one
GROUPS = {"fid": fid.command, "dataset": dataset.command}
DEFAULTS = {"dataset": "convert"}


def cases(key):
    found = [
        (entry, case)
        for entry in g.entries("cli")
        for case in entry["config"].get(key, [])
        if case["command"].split()[0] in GROUPS
    ]
    return {
        "argvalues": found,
        "ids": [f"{entry['id']}-{case['command']}-{i}" for i, (entry, case) in enumerate(found)],
    }


def parse(case):
    """The parameters as the command gets them."""
    name, *verb = case["command"].split()
    command = GROUPS[name].commands[verb[0] if verb else DEFAULTS[name]]
    return command.make_context(case["command"], list(case["args"])).params


@pytest.mark.parametrize("entry, case", **cases("parsed"))
def test_golden_parsed(entry, case):
    params = parse(case)
    got = {key: list(value) if isinstance(value, tuple) else value for key, value in params.items()}
    assert {key: got[key] for key in case["params"]} == case["params"]


@pytest.mark.parametrize("entry, case", **cases("rejected"))
def test_golden_rejected(entry, case):
    with pytest.raises(click.ClickException) as caught:
        parse(case)
    assert isinstance(caught.value, getattr(click, case["error"]))
