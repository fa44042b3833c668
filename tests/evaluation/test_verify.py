"""verify: the table of errors of ops and of whole networks."""

import dataclasses
import math

import pytest
import torch

from edm_fast import backend, cases, networks
from edm_fast.errors import UserError
from edm_fast.evaluation import _networks, verify
from helpers.tiny_networks import tiny, tiny_checkpoint


def test_every_backend_is_within_its_budget():
    rows = verify.verify_ops(verify.small_calls())
    assert {row["op"] for row in rows} == set(backend.ops()) and all(row["ok"] for row in rows)
    for row in rows:
        assert row["backend"] != "reference" or (row["identical"] and row["ulp"] == 0)
        assert row["backend"] != "reference" or row["dtype"] == "float64" or row["error"] > 0


def test_the_real_layer_shapes_are_all_there():
    calls = {(op, case.name) for op, case, _ in verify.real_calls()}
    assert calls == {(op, case.name) for op in cases.CASES for case in cases.cases(op, real=True)}
    assert {dtype for op, _, dtype in verify.real_calls() if op == "solver_update"} == {torch.float32, torch.float64}


@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_wrong_numbers_are_found(monkeypatch, factor):
    op = backend.ops()["attention"]
    wrong = dataclasses.replace(op.implementations["cpu"], forward=lambda args: op.reference(args) * factor)
    monkeypatch.setattr(op, "implementations", {"cpu": wrong, "reference": op.implementations["reference"]})
    rows = verify.verify_ops([("attention", cases.SMALL["attention"], torch.float32)])
    assert [row["ok"] for row in rows] == [True, False]
    (_, bad) = verify.summary(rows)
    assert not bad["ok"] and (math.isnan(bad["error"]) if math.isnan(factor) else bad["budget_spent"] > 100)


def test_summary_keeps_the_worst_case():
    where = {"op": "conv2d", "backend": "cpu", "device": "cpu", "dtype": "float32"}
    good = {**where, "error": 1.0, "relative": 0.1, "budget": 10.0, "ulp": 7, "identical": True, "ok": True}
    bad = {**where, "error": 0.5, "relative": 0.2, "budget": 0.25, "ulp": 3, "identical": False, "ok": False}
    (row,) = verify.summary([good, bad])
    assert (row["error"], row["relative"], row["budget_spent"], row["ulp"]) == (1.0, 0.2, 2.0, 7)
    assert (row["cases"], row["identical"], row["ok"]) == (2, 1, False)


@pytest.mark.parametrize("class_name", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"])
@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_float64_truth(class_name, model_type):
    """It is what the network computes, to the rounding of float32 and no closer."""
    net = tiny(class_name, model_type=model_type, label_dim=3)
    call = _networks.inputs(net, 2, 0.5)
    truth = _networks.Exact(net)(*call)
    assert truth.dtype == torch.float64 and truth.shape == call.x.shape
    with torch.no_grad():
        error = _networks.relative_error([net(*call)], [truth])
    assert 1e-9 < error < 1e-6
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


class Probe(torch.nn.Module):
    """F(x; c_noise) = x c_noise."""

    def forward(self, x, noise_labels, class_labels=None):
        return x * noise_labels.reshape(-1, 1, 1, 1)


def test_float64_truth_rounds_nothing_to_float32():
    net = tiny()
    net.model = Probe()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(0.7)
    s = sigma.item()
    factor = 0.25 / (s**2 + 0.25) + s * 0.5 / (s**2 + 0.25) * math.log(s) / 4
    torch.testing.assert_close(_networks.Exact(net)(x, sigma, None), factor * x.double(), rtol=1e-14, atol=0)


def test_randomised_networks_have_no_idle_layers():
    with torch.random.fork_rng():
        net = networks.build("EDMPrecond", {"img_resolution": 8, "img_channels": 3, "model_channels": 32})
    names = dict(net.named_parameters())
    before = {name: parameter.clone() for name, parameter in names.items()}
    _networks.randomise(net)
    for name, parameter in names.items():
        if parameter.ndim > 1:
            assert 0.2 < parameter.std() * math.sqrt(parameter[0].numel()) < 40, name
        assert parameter.std() > 0.01, name
    assert torch.equal(names["model.map_layer0.weight"], before["model.map_layer0.weight"])
    assert not before["model.out_conv.weight"].any() and names["model.out_conv.weight"].any()


def test_inputs_do_not_depend_on_the_batch():
    net = tiny(label_dim=3)
    one, four = _networks.inputs(net, 1, 0.5), _networks.inputs(net, 4, 0.5)
    assert torch.equal(one.x, four.x[:1]) and torch.equal(one.labels, four.labels[:1])
    assert four.x.std() == pytest.approx(math.sqrt(0.5), rel=0.1)
    assert _networks.inputs(tiny(), 1, 0.5).labels is None


def test_network_rows(monkeypatch):
    net = tiny()

    def accelerated(net, precision):
        if precision == "exact":
            raise UserError("not today")
        return lambda *args: net(*args) * (1 + {"fp32": 1e-4, "bf16": 5e-3}[precision])

    monkeypatch.setattr(_networks, "accelerated", accelerated)
    rows = verify.verify_network("tiny", net, sigmas=(0.5, 80.0))
    table = {(row["way"], row.get("sigma")): row for row in rows}
    assert table["accelerated exact", None] == {
        "network": "tiny",
        "way": "accelerated exact",
        "reason": "not today",
        "ok": True,
    }
    assert table["reference", 0.5]["identical"] and table["reference", 0.5]["ulp"] == 0
    assert table["fused ops", 80.0]["ok"] and table["fused ops", 80.0]["relative"] < 1e-6
    eps4, plain = 4 * torch.finfo(torch.float32).eps, table["reference", 0.5]
    widest = max(op.implementations["cpu"].budget for op in backend.ops().values())
    assert table["fused ops", 0.5]["budget"] == pytest.approx(widest * plain["relative"] + eps4)
    assert widest > 2 and plain["budget"] == pytest.approx(2 * plain["relative"] + eps4)
    assert not table["accelerated fp32", 0.5]["ok"] and table["accelerated fp32", 0.5]["relative"] > 9e-5
    assert table["accelerated bf16", 80.0]["ok"] and not table["accelerated bf16", 80.0]["identical"]
    assert 1e-3 < table["torch bf16", 0.5]["relative"] < 5e-2 and table["torch bf16", 0.5]["ok"]
    bf16 = table["accelerated bf16", 0.5]["budget"]
    assert bf16 == max(1e-2, table["torch bf16", 0.5]["budget"]) > 100 * table["accelerated fp32", 0.5]["budget"]
    assert len(rows) == 1 + 5 * 2


def test_open_network(tmp_path):
    first, second = (_networks.open_network(tiny_checkpoint(tmp_path, use_fp16=True)) for _ in range(2))
    assert not first.use_fp16 and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert _networks.open_network("demo").img_channels == 1
    with pytest.raises(
        UserError, match="expected a checkpoint, or one of demo, demo-solids, .*edm-cifar10-32x32-cond-vp"
    ):
        _networks.open_network("edm-cifar10")


def test_presets_get_the_same_weights_and_leave_the_generator_alone(monkeypatch):
    monkeypatch.setitem(networks.PRESETS, "tiny", ("EDMPrecond", {"img_resolution": 8, "img_channels": 1}))
    monkeypatch.setattr(_networks, "preset", lambda name: tiny())
    state = torch.get_rng_state()
    first, second = _networks.open_network("tiny"), _networks.open_network("tiny")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
