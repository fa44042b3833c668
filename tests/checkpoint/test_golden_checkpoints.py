"""Golden kind `checkpoints`: published files load bit for bit, hostile ones are refused, and neither runs anything."""

import hashlib

import pytest
import torch

from edm_fast import checkpoint
from helpers import golden_cases as g
from helpers.golden_checkpoints import check_adam, check_harmless, check_refused, file_of, opened

ENTRIES = g.entries("checkpoints")


def expects(what):
    return [e for e in ENTRIES if e.get("expect") == what]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every file of the kind, opened in another process."""
    return opened(ENTRIES, tmp_path_factory.mktemp("canary"))


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_golden_no_side_effect(entry, outcomes):
    check_harmless(outcomes[entry["id"]])


@pytest.mark.parametrize("entry", expects("reject"), ids=g.entry_id)
def test_golden_rejected(entry, outcomes):
    check_refused(entry, outcomes[entry["id"]])


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
    check_adam(entry, adam)

    # it is what torch's Adam takes back
    net = checkpoint.load(file_of(entry), key="net").requires_grad_(True)
    parameters = list(net.parameters())
    assert len(parameters) == config["num_params"]
    optimizer = torch.optim.Adam(parameters)
    optimizer.load_state_dict(adam)
    assert all(torch.equal(optimizer.state[parameters[i]]["exp_avg"], s["exp_avg"]) for i, s in adam["state"].items())
