"""Golden kind `checkpoints`: published files load bit for bit, hostile ones are refused, and neither runs anything."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edm_fast import checkpoint
from helpers import golden_cases as g

ENTRIES = g.entries("checkpoints")


def expects(what):
    return [e for e in ENTRIES if e.get("expect") == what]


def file_of(entry):
    return g.path(entry, entry["config"]["file"])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every file of the kind, opened in another process: id -> what it said, and the files that appeared."""
    base = tmp_path_factory.mktemp("canary")
    folders = {e["id"]: base / str(i) for i, e in enumerate(ENTRIES)}
    jobs = [{"id": e["id"], "file": str(file_of(e)), "folder": str(folders[e["id"]])} for e in ENTRIES]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("_load_all.py"))],
        input=json.dumps({"jobs": jobs}),
        capture_output=True,
        text=True,
        cwd=base,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = {line["id"]: line for line in map(json.loads, done.stdout.splitlines())}
    return {i: {**said.get(i, {}), "found": os.listdir(f) if f.exists() else None} for i, f in folders.items()}


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_golden_no_side_effect(entry, outcomes):
    outcome = outcomes[entry["id"]]
    assert outcome["found"] == [], "the file left something behind, or ended the process"
    assert "error" in outcome
    if outcome["kind"] is not None:
        assert outcome["kind"] == "CheckpointError", outcome
        assert "\n" not in outcome["error"] and len(outcome["error"]) < 500


@pytest.mark.parametrize("entry", expects("reject"), ids=g.entry_id)
def test_golden_rejected(entry, outcomes):
    outcome = outcomes[entry["id"]]
    assert outcome["kind"] == "CheckpointError"
    assert outcome["error"].startswith(str(file_of(entry)))


@pytest.mark.parametrize("entry", expects("load"), ids=g.entry_id)
def test_golden_load(entry, outcomes):
    assert outcomes[entry["id"]]["error"] is None
    config, arrays = entry["config"], g.arrays(entry)
    rng = torch.get_rng_state()
    net = checkpoint.load(file_of(entry))
    assert torch.equal(rng, torch.get_rng_state()), "loading moved the global generator"
    assert type(net).__name__ == config["class"]
    assert not net.training and not any(p.requires_grad for p in net.parameters())

    state = net.state_dict()
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in state.values())
    digests = {k: [list(t.shape), hashlib.sha256(t.numpy().tobytes()).hexdigest()[:16]] for k, t in state.items()}
    assert digests == config["state_dict"]
    assert list(state) == arrays["head_keys"].tolist()
    g.check(entry, "head_rows", g.heads(state.values()))

    inputs = {k.removeprefix("in/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("in/")}
    with torch.no_grad():
        g.check(entry, "out/D_x", net(**inputs))


@pytest.mark.parametrize("entry", expects("load"), ids=g.entry_id)
def test_golden_inspect(entry):
    config, content = entry["config"], checkpoint.inspect(file_of(entry))
    network = content["networks"]["ema"]
    assert (network["class_name"], network["init_kwargs"]) == (config["class"], config["kwargs"])
    assert network["tensors"] == {name: shape for name, (shape, _) in config["state_dict"].items()}
    loss, pipe = content["entries"].get("loss_fn"), content["entries"].get("augment_pipe")
    assert (loss and loss["class_name"]) == config["loss_fn"]
    assert (pipe and pipe["_init_kwargs"]) == config["augment_pipe"]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "param_groups" in e["config"]], ids=g.entry_id)
def test_golden_training_state(entry):
    config, arrays = entry["config"], g.arrays(entry)
    state = checkpoint.load_training_state(file_of(entry))
    assert (state["class_name"], state["init_kwargs"]) == (config["class"], config["kwargs"])
    assert list(state["net"]) == arrays["net_keys"].tolist()
    g.check(entry, "net_rows", g.heads(state["net"].values()))

    adam = state["optimizer_state"]
    assert sorted(adam["state"]) == config["params_with_state"]
    found = {f"{index}/{name}": value for index, part in adam["state"].items() for name, value in part.items()}
    assert sorted(found) == sorted(arrays["adam_keys"].tolist())
    g.check(entry, "adam_rows", g.heads([found[key] for key in arrays["adam_keys"]]))
    for got, want in zip(adam["param_groups"], config["param_groups"], strict=True):
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in got.items() if k != "params"} == want

    # it is what torch's Adam takes back
    net = checkpoint.load(file_of(entry), key="net").requires_grad_(True)
    parameters = list(net.parameters())
    assert len(parameters) == config["num_params"]
    optimizer = torch.optim.Adam(parameters)
    optimizer.load_state_dict(adam)
    assert all(torch.equal(optimizer.state[parameters[i]]["exp_avg"], s["exp_avg"]) for i, s in adam["state"].items())
