"""EDM2's published files load with the weights they hold, hostile ones are refused, and neither runs anything."""

import hashlib

import pytest
import torch

from edm_fast import checkpoint
from helpers import golden_cases as g
from helpers.golden_checkpoints import check_adam, check_harmless, check_refused, file_of, opened

ENTRIES = g.edm2("checkpoints")
NETWORKS = [e for e in ENTRIES if "state_dict" in e["config"]]
STATES = [e for e in ENTRIES if "param_groups" in e["config"]]
HOSTILE = [e for e in ENTRIES if "canary" in e["config"]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return opened(ENTRIES, tmp_path_factory.mktemp("canary"))


@pytest.mark.parametrize("entry", ENTRIES, ids=g.entry_id)
def test_golden_no_side_effect(entry, outcomes):
    check_harmless(outcomes[entry["id"]])
    if entry["expect"] == "reject":
        check_refused(entry, outcomes[entry["id"]])
    assert len(NETWORKS) + len(STATES) + len(HOSTILE) == len(ENTRIES)


def digests(net):
    half = {k: t.numpy().astype("<f2").tobytes() for k, t in net.state_dict().items()}
    return {k: [list(net.state_dict()[k].shape), hashlib.sha256(raw).hexdigest()[:16]] for k, raw in half.items()}


@pytest.mark.parametrize("entry", NETWORKS, ids=g.entry_id)
def test_golden_edm2_load(entry, outcomes, tmp_path):
    assert outcomes[entry["id"]]["error"] is None
    config, arrays = entry["config"], g.arrays(entry)
    rng = torch.get_rng_state()
    net = checkpoint.load(file_of(entry))
    assert torch.equal(rng, torch.get_rng_state()), "loading moved the global generator"
    assert type(net).__name__ == config["class"] and net.init_kwargs.items() <= config["kwargs"].items()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    state = net.state_dict()
    assert list(state) == arrays["head_keys"].tolist() and digests(net) == config["state_dict"]
    g.check(entry, "head_rows", g.heads(state.values()))
    inputs = {k.removeprefix("in/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("in/")}
    out = net(**inputs)
    g.check(entry, "out/D_x", out)
    for name in ("net.safetensors", "folder", "net.pkl"):
        checkpoint.save(net, tmp_path / name)
        again = checkpoint.load(tmp_path / name)
        assert again.init_kwargs == net.init_kwargs and digests(again) == digests(net)
        assert torch.equal(again(**inputs), out)


@pytest.mark.parametrize("entry", NETWORKS, ids=g.entry_id)
def test_golden_edm2_inspect(entry):
    config, content = entry["config"], checkpoint.inspect(file_of(entry))
    network = content["networks"]["ema"]
    assert (network["class_name"], network["init_kwargs"]) == (config["class"], config["kwargs"])
    assert network["tensors"] == {name: shape for name, (shape, _) in config["state_dict"].items()}
    assert content["entries"]["encoder"]["class_name"] == config["encoder"]


@pytest.mark.parametrize("entry", STATES, ids=g.entry_id)
def test_golden_edm2_training_state(entry):
    config, arrays = entry["config"], g.arrays(entry)
    state = checkpoint.load_training_state(file_of(entry))
    assert (state["state"], state["loss_fn"]) == (config["state"], config["loss_fn"])
    assert [float(std) for std in state["ema"]] == config["ema_stds"]
    assert list(state["net"]) == arrays["net_keys"].tolist()
    g.check(entry, "net_rows", g.heads(state["net"].values()))
    averaged = {f"{i}/{k}": t for i, ema in enumerate(state["ema"].values()) for k, t in ema.items()}
    assert list(averaged) == arrays["ema_keys"].tolist()
    g.check(entry, "ema_rows", g.heads(averaged.values()))
    check_adam(entry, state["optimizer_state"])
