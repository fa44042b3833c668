"""Golden checkpoints opened in another process, which hostile ones may end or leave files behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import golden_cases as g

LOAD_ALL = Path(__file__).parents[1] / "checkpoint/_load_all.py"


def file_of(entry):
    return g.path(entry, entry["config"]["file"])


def opened(entries, base):
    """id -> what opening its file said, and the files that appeared in the empty folder it had."""
    folders = {e["id"]: base / str(i) for i, e in enumerate(entries)}
    jobs = [{"id": e["id"], "file": str(file_of(e)), "folder": str(folders[e["id"]])} for e in entries]
    done = subprocess.run(
        [sys.executable, str(LOAD_ALL)],
        input=json.dumps({"jobs": jobs}),
        capture_output=True,
        text=True,
        cwd=base,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = {line["id"]: line for line in map(json.loads, done.stdout.splitlines())}
    return {i: {**said.get(i, {}), "found": os.listdir(f) if f.exists() else None} for i, f in folders.items()}


def check_harmless(outcome):
    """It left nothing behind, and if it was refused, then in one line."""
    assert outcome["found"] == [], "the file left something behind, or ended the process"
    assert "error" in outcome
    if outcome["kind"] is not None:
        assert outcome["kind"] == "CheckpointError", outcome
        assert "\n" not in outcome["error"] and len(outcome["error"]) < 500


def check_refused(entry, outcome):
    """By an error that names the file."""
    assert outcome["kind"] == "CheckpointError"
    assert outcome["error"].startswith(str(file_of(entry)))


def check_adam(entry, state):
    """The optimizer state of a training state: rows of all tensors, and the settings."""
    config, arrays = entry["config"], g.arrays(entry)
    assert sorted(state["state"]) == config["params_with_state"]
    found = {f"{index}/{name}": value for index, part in state["state"].items() for name, value in part.items()}
    assert sorted(found) == sorted(arrays["adam_keys"].tolist())
    g.check(entry, "adam_rows", g.heads([found[key] for key in arrays["adam_keys"]]))
    for got, want in zip(state["param_groups"], config["param_groups"], strict=True):
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in got.items() if k != "params"} == want
