"""Whole networks, single layers, initial states and preconditioner functions against the golden data."""

import gzip
import json
import math

import pytest
import torch

from edm_fast import networks, use_backend
from edm_fast.ops.attention.reference import attention_weights
from helpers import golden_cases as g


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    """The definition, and whatever the ops choose by themselves here."""
    with use_backend(request.param):
        yield request.param


def tensor(arrays, name):
    return torch.from_numpy(arrays[name]) if name in arrays else None


def build(entry, arrays):
    net = networks.build(entry["config"]["class"], entry["config"]["kwargs"]).eval()
    state = {k.removeprefix("param/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("param/")}
    net.load_state_dict(state)  # strict: every name and shape
    return net


@pytest.mark.parametrize("entry", g.entries("networks"), ids=g.entry_id)
def test_golden_network(entry, backend):
    arrays = g.arrays(entry)
    net = build(entry, arrays)
    assert net.sigma_min == float(entry["sigma_min"]) and net.sigma_max == float(entry["sigma_max"])
    inner, rows = {}, {}

    def keep_inner(module, args, kwargs, output):
        inner["mid/c_in_x"], inner["mid/c_noise"], inner["mid/F_x"] = args[0], args[1], output

    hooks = [net.model.register_forward_hook(keep_inner, with_kwargs=True)]
    names = [str(name) for name in entry.get("stat_keys", arrays.get("stat_keys", []))]
    for name in names:

        def keep_row(module, args, output, name=name):
            if isinstance(module, networks.GroupNorm | networks.Conv2d):
                output = type(module).forward(module, args[0])  # the layer alone, without what is fused behind it
            rows.setdefault(name, output.flatten())

        hooks.append(net.model.get_submodule(name).register_forward_hook(keep_row))
    x, sigma, labels = (tensor(arrays, f"in/{name}") for name in ("x", "sigma", "class_labels"))
    with torch.no_grad():
        D_x = net(x, sigma, labels, augment_labels=tensor(arrays, "in/augment_labels"))
        for hook in hooks:
            hook.remove()
        for name in inner:
            if name in arrays:
                g.check(entry, name, inner[name])
        for row, name in enumerate(names):
            y = rows[name].double()
            got = [float(y.mean()), float(y.std()), *y[:14].tolist()]
            got += [math.nan] * (arrays["stat_rows"].shape[1] - len(got))
            g.check(entry, f"stat_rows of {name}", got, arrays["stat_rows"][row])
        g.check(entry, "out/D_x", D_x)
        if "out/D_x_scalar_sigma_no_labels" in arrays:
            got = net(x.double(), tensor(arrays, "in/scalar_sigma"))
            g.check(entry, "out/D_x_scalar_sigma_no_labels", got)
        if "out/D_x_soft_label_broadcast" in arrays:
            labels, augment = tensor(arrays, "in/soft_label"), tensor(arrays, "in/augment_labels")
            got = net(x, sigma, labels, augment_labels=augment)
            g.check(entry, "out/D_x_soft_label_broadcast", got)


def is_module(entry):
    return "kwargs" in entry["config"]


@pytest.mark.parametrize("entry", g.entries("blocks", is_module), ids=g.entry_id)
def test_golden_block(entry, backend):
    arrays = g.arrays(entry)
    module = getattr(networks, entry["config"]["class"])(**entry["config"]["kwargs"])
    state = {k.removeprefix("param/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("param/")}
    module.load_state_dict(state)
    inputs = [tensor(arrays, f"in/{i}") for i in range(sum(f"in/{i}" in arrays for i in range(8)))]
    wants_grad = "in/grad_y" in arrays
    for x in inputs:
        x.requires_grad_(wants_grad)
    y = module(*inputs)
    g.check(entry, "out/y", y)
    if wants_grad:
        y.backward(tensor(arrays, "in/grad_y"))
        for i, x in enumerate(inputs):
            g.check(entry, f"out/grad_in_{i}", x.grad)
        for name in arrays:
            if name.startswith("out/grad_param/"):
                g.check(entry, name, module.get_parameter(name.removeprefix("out/grad_param/")).grad)


@pytest.mark.parametrize("entry", g.entries("blocks", lambda e: not is_module(e)), ids=g.entry_id)
def test_golden_attention_weights(entry):
    arrays = g.arrays(entry)
    dtype = getattr(torch, entry["config"]["dtype"])
    q, k, dw = (tensor(arrays, f"in/{name}").to(dtype) for name in ("q", "k", "grad_w"))
    q.requires_grad_()
    k.requires_grad_()
    w = attention_weights(q, k)
    assert w.dtype == dtype
    w.backward(dw)
    for name, got in (("w", w), ("grad_q", q.grad), ("grad_k", k.grad)):
        g.check(entry, f"out/{name}", got.float())


@pytest.mark.parametrize("entry", g.entries("init", lambda e: "arrays" in e), ids=g.entry_id)
def test_golden_initial_state(entry):
    net = g.check_initial_state(entry)
    if "num_params" in entry:
        assert sum(p.numel() for p in net.parameters()) == entry["num_params"]


@pytest.mark.parametrize("entry", g.entries("init", lambda e: "arrays" not in e), ids=g.entry_id)
def test_golden_layout(entry):
    layout = json.loads(gzip.decompress(g.path(entry).read_bytes()))
    with torch.device("meta"):
        net = networks.build(entry["config"]["class"], entry["config"]["kwargs"])
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == layout
    assert sum(p.numel() for p in net.parameters()) == entry["num_params"]
    assert len(net.state_dict()) == entry["num_tensors"]


@pytest.mark.parametrize("entry", g.entries("precond"), ids=g.entry_id)
def test_golden_precond(entry):
    arrays, config = g.arrays(entry), entry["config"]
    tiny = {"img_resolution": 8, "img_channels": 1, "model_type": "DhariwalUNet", "model_channels": 8}
    tiny |= {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    net = networks.build(config["class"], {**tiny, **config["kwargs"]})
    assert net.sigma_min == entry["sigma_min"] and net.sigma_max == entry["sigma_max"]
    sigma = tensor(arrays, "sigma_in")
    if "u" in arrays:
        g.check(entry, "u", net.u)
        g.check(entry, "index", net.round_sigma(sigma, return_index=True))
        g.check(entry, "rounded_f64", net.round_sigma(sigma))
        g.check(entry, "rounded_f32", net.round_sigma(sigma.float()))
    if "t" in arrays:
        t = tensor(arrays, "t")
        for suffix, dtype in (("f64", torch.float64), ("f32", torch.float32)):
            g.check(entry, f"sigma_{suffix}", net.sigma(t.to(dtype)))
            g.check(entry, f"t_{suffix}", net.sigma_inv(sigma.to(dtype)))
