"""EDM2's functions, layers, blocks, networks and initial states against the golden data."""

import gzip
import json
import math

import pytest
import torch

from edm_fast import networks, use_backend
from helpers import golden_cases as g


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    """The definition, and whatever the ops choose by themselves here."""
    with use_backend(request.param):
        yield request.param


def tensor(arrays, name):
    return torch.from_numpy(arrays[name].copy()) if name in arrays else None


def loaded(entry, arrays, dtype=torch.float32):
    """The module of an entry with the entry's weights, in eval mode; weights and buffers of the type."""
    module = getattr(networks, entry["config"].get("class", "Block"))(**entry["config"]["kwargs"])
    state = {k.removeprefix("param/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("param/")}
    module.load_state_dict(state)  # strict: every name and shape
    return module.to(dtype).eval()


def check_rows(entry, arrays, name, tensors):
    """The condensed rows of tensors by name, each at the tolerance of its own largest value."""
    keys = [str(key) for key in arrays[f"{name}_keys"]]
    rows = g.heads([tensors[key] for key in keys], arrays[f"{name}_rows"].shape[1])
    for key, got, want in zip(keys, rows, arrays[f"{name}_rows"], strict=True):
        g.check(entry, f"{name}_rows of {key}", got, want)


@pytest.mark.parametrize("entry", g.edm2("layers", lambda e: "runs" in e["config"]), ids=g.entry_id)
def test_golden_functions(entry, backend):
    arrays = g.arrays(entry)
    for run in entry["config"]["runs"]:
        function, name = getattr(networks, run["function"]), run["name"]
        inputs = [tensor(arrays, f"{name}/in{i}") for i in range(run["inputs"])]
        y = function(*(x.requires_grad_() for x in inputs), **run["kwargs"])
        g.check(entry, f"{name}/y", y)
        grads = torch.autograd.grad(y, inputs, tensor(arrays, f"{name}/grad_y"))
        for i, grad in enumerate(grads):
            g.check(entry, f"{name}/grad{i}", grad)
        half = function(*(x.detach().half() for x in inputs), **run["kwargs"])
        assert half.dtype == torch.float16
        g.check(entry, f"{name}/y_half", half.float())


@pytest.mark.parametrize("entry", g.edm2("layers", lambda e: e["config"].get("class") == "MPFourier"), ids=g.entry_id)
def test_golden_fourier(entry):
    arrays = g.arrays(entry)
    for name, dtype in (("out/y", torch.float32), ("out/y_half_buffers", torch.float16)):
        g.check(entry, name, loaded(entry, arrays, dtype)(tensor(arrays, "in/x")))


@pytest.mark.parametrize("entry", g.edm2("layers", lambda e: e["config"].get("class") == "MPConv"), ids=g.entry_id)
def test_golden_mpconv(entry, backend):
    arrays = g.arrays(entry)
    x, gain = tensor(arrays, "in/x").requires_grad_(), tensor(arrays, "in/gain")
    assert (gain is None) == (entry["config"]["gain"] is None)
    for mode in ("eval", "train"):
        layer = loaded(entry, arrays).train(mode == "train")
        wanted = {"x": x, "weight": layer.weight, **({} if gain is None else {"gain": gain.requires_grad_()})}
        y = layer(x, **({} if gain is None else {"gain": gain}))
        g.check(entry, f"{mode}/y", y)
        grads = torch.autograd.grad(y, list(wanted.values()), tensor(arrays, "in/grad_y"))
        for name, grad in zip(wanted, grads, strict=True):
            g.check(entry, f"{mode}/grad_{name}", grad)
        after = arrays["train/weight_after"] if mode == "train" else arrays["param/weight"]
        g.check(entry, "train/weight_after", layer.weight, after)
    layer, half_gain = loaded(entry, arrays, torch.float16), {} if gain is None else {"gain": gain.detach().half()}
    with torch.no_grad():
        # at the tolerance of float32: which roundings a snapshot brings is part of the definition
        g.check(entry, "rounded", layer(x, **half_gain), arrays["half_params/y"])
        g.check(entry, "half/y", layer(x.half(), **half_gain).float())


@pytest.mark.parametrize("entry", g.edm2("blocks"), ids=g.entry_id)
def test_golden_edm2_block(entry, backend):
    arrays = g.arrays(entry)
    x, emb = (tensor(arrays, f"in/{name}").requires_grad_() for name in ("x", "emb"))
    comparable = not entry["config"]["kwargs"].get("dropout") or g.same_dropout()
    for mode in ("eval", "train") if comparable else ("eval",):
        block = loaded(entry, arrays).train(mode == "train")
        assert block.num_heads == entry["num_heads"]
        x.grad = emb.grad = None
        torch.manual_seed(entry["config"]["torch_manual_seed"])
        y = block(x, emb)
        y.backward(tensor(arrays, "in/grad_y"))
        g.check(entry, f"{mode}/y", y)
        g.check(entry, f"{mode}/grad_x", x.grad)
        g.check(entry, f"{mode}/grad_emb", emb.grad)
        grads = {name: parameter.grad for name, parameter in block.named_parameters()}
        for name, grad in grads.items():
            if mode == "eval":
                g.check(entry, f"eval/grad_param/{name}", grad)
        if mode == "train":
            check_rows(entry, arrays, "train_gradhead", grads)
    block = loaded(entry, arrays, torch.float16)
    with torch.no_grad():
        g.check(entry, "rounded", block(x, emb), arrays["half_params/y"])
        g.check(entry, "half/y", block(x.half(), emb).float())


@pytest.mark.parametrize("entry", g.edm2("networks"), ids=g.entry_id)
def test_golden_edm2_network(entry, backend):
    arrays = g.arrays(entry)
    net = loaded(entry, arrays)
    assert sum(p.numel() for p in net.parameters()) == entry["num_params"]
    x, sigma, labels = (tensor(arrays, f"in/{name}") for name in ("x", "sigma", "class_labels"))
    seen, rows = {}, {}
    hooks = [
        net.unet.register_forward_hook(
            lambda module, args, kwargs, y: seen.update(zip(("c_in_x", "c_noise", "F_x"), (*args, y), strict=True)),
            with_kwargs=True,
        )
    ]
    names = [str(name) for name in arrays["stat_keys"]]
    hooks += [
        net.unet.get_submodule(name).register_forward_hook(lambda module, args, y, name=name: rows.update({name: y}))
        for name in names
    ]
    D_x, logvar = net(x.requires_grad_(), sigma, labels, return_logvar=True)
    for hook in hooks:
        hook.remove()
    for name, value in (*((f"mid/{name}", value) for name, value in seen.items()), ("out/D_x", D_x)):
        g.check(entry, name, value)
    g.check(entry, "out/logvar", logvar)
    for name, want in zip(names, arrays["stat_rows"], strict=True):
        y = rows[name].detach().double()
        got = [float(y.mean()), float(y.std()), *y.flatten()[: len(want) - 2].tolist()]
        g.check(entry, f"stat_rows of {name}", got + [math.nan] * (len(want) - len(got)), want)
    torch.autograd.backward((D_x, logvar), (tensor(arrays, "in/grad_D_x"), tensor(arrays, "in/grad_logvar")))
    g.check(entry, "out/grad_x", x.grad)
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name in arrays:
        if name.startswith("grad/"):
            g.check(entry, name, grads[name.removeprefix("grad/")])
    check_rows(entry, arrays, "gradhead", grads)
    with torch.no_grad():
        got = net(x.double(), tensor(arrays, "in/scalar_sigma"))
        g.check(entry, "out/D_x_scalar_sigma_no_labels", got)
        if "in/soft_label" in arrays:
            g.check(entry, "out/D_x_soft_label_broadcast", net(x, sigma, tensor(arrays, "in/soft_label")))
        half = tensor(arrays, "mid/c_in_x").half()
        for name, dtype in (("half/F_x", torch.float32), ("half/F_x_half_params", torch.float16)):
            unet = loaded(entry, arrays, dtype).unet
            F_x = unet(half, tensor(arrays, "mid/c_noise"), labels)
            assert F_x.dtype == torch.float16
            g.check(entry, name, F_x.float())
        D_x = loaded(entry, arrays, torch.float16)(x, sigma, labels)
        g.check(entry, "rounded", D_x, arrays["half_params/D_x"])
        if entry["config"]["kwargs"].get("dropout") and not g.same_dropout():
            return  # this torch draws other masks
        torch.manual_seed(entry["config"]["train_torch_manual_seed"])
        D_x, logvar = net.train()(x, sigma, labels, return_logvar=True)
    g.check(entry, "train/D_x", D_x)
    g.check(entry, "train/logvar", logvar)
    check_rows(entry, arrays, "after", dict(net.named_parameters()))


@pytest.mark.parametrize("entry", g.edm2("init", lambda e: "arrays" in e), ids=g.entry_id)
def test_golden_edm2_initial_state(entry):
    net = g.check_initial_state(entry)
    assert sum(p.numel() for p in net.parameters()) == entry["num_params"]


@pytest.mark.parametrize("entry", g.edm2("init", lambda e: "arrays" not in e), ids=g.entry_id)
def test_golden_edm2_layout(entry):
    layout, config = json.loads(gzip.decompress(g.path(entry).read_bytes())), entry["config"]
    class_name, kwargs = networks.PRESETS[entry["id"].partition("full_")[2]]
    assert class_name == config["class"] and {**kwargs, **config["kwargs"]} == kwargs
    with torch.device("meta"):
        net = networks.build(class_name, kwargs)
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == layout
    assert list(net.state_dict()) == list(layout)
    assert sum(p.numel() for p in net.parameters()) == entry["num_params"]
    assert len(net.state_dict()) == entry["num_tensors"]
    assert sorted(dict(net.named_buffers())) == sorted(entry["buffers"])
    assert sorted(n for n, m in net.named_modules() if getattr(m, "num_heads", 0)) == sorted(entry["attention"])
