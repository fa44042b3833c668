"""Losses against golden noise levels, noisy inputs, losses and gradients."""

import functools
import importlib

import numpy as np
import pytest
import torch

from edm_fast import networks, training, use_backend
from edm_fast.networks import _layers
from helpers import golden_cases as g
from helpers import recorded_order

attention_module = importlib.import_module("edm_fast.ops.attention.reference")  # by its name; a function has the same


def make_loss(config):
    return getattr(training, config["class"])(**config["kwargs"])


def make_augment(kwargs):
    return None if kwargs is None else training.AugmentPipe(**kwargs)


def has_network(entry):
    return str(entry["config"]["network"]).startswith("networks/")


class Recorder:
    """A stand-in denoiser D(x) = x / 2 that keeps what it was called with."""

    def __call__(self, x, sigma, labels, augment_labels=None):
        self.noisy, self.sigma, self.augment_labels = x, sigma, augment_labels
        return x / 2


@pytest.mark.parametrize("entry", g.entries("losses", lambda entry: not has_network(entry)), ids=g.entry_id)
def test_golden_closed_form(entry):
    config = entry["config"]
    assert config["network"] == "D(x) = x / 2"
    images = torch.from_numpy(g.arrays(entry)["in/images"])
    for run in config["runs"]:
        net = Recorder()
        torch.manual_seed(run["torch_manual_seed"])
        loss = make_loss(config["loss"])(net, images, None, make_augment(run["augment"]))
        got = {"loss": loss, "noisy": net.noisy, "sigma": net.sigma, "augment_labels": net.augment_labels}
        names = [name for name in g.arrays(entry) if name.startswith(run["name"] + "/")]
        assert names
        for name in names:
            g.check(entry, name, got[name.split("/", 1)[1]])


@pytest.mark.skipif(g.same_arithmetic() is not None, reason=str(g.same_arithmetic()))
@pytest.mark.parametrize("entry", g.entries("losses", lambda entry: not has_network(entry)), ids=g.entry_id)
def test_bits(entry):
    """Noise levels, noisy and augmented images and losses have the bits of the published code."""
    images = torch.from_numpy(g.arrays(entry)["in/images"])
    for run in entry["config"]["runs"]:
        net = Recorder()
        torch.manual_seed(run["torch_manual_seed"])
        loss = make_loss(entry["config"]["loss"])(net, images, None, make_augment(run["augment"]))
        for name, got in (("loss", loss), ("noisy", net.noisy), ("sigma", net.sigma)):
            g.check_bits(entry, f"{run['name']}/{name}", got)


def load_network(entry):
    """The golden network the entry names, in training mode with the entry's dropout rates."""
    config, source = entry["config"], g.by_id(entry["config"]["network"])
    kwargs = {**source["config"]["kwargs"], "dropout": config["dropout"], "label_dropout": config["label_dropout"]}
    net = networks.build(source["config"]["class"], kwargs)
    weights = {key[len("param/") :]: value for key, value in g.arrays(source).items() if key.startswith("param/")}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return net.train(config["mode"] == "train")


@functools.cache
def measured(id):
    entry = g.by_id(id)
    config, arrays = entry["config"], g.arrays(entry)
    if config["dropout"] and config["mode"] == "train" and not g.same_dropout():
        pytest.skip(f"torch {torch.__version__} draws other dropout masks than the torch that made the data")
    net = load_network(entry)
    images, labels = (torch.from_numpy(arrays[f"in/{name}"]) for name in ("images", "labels"))
    assert config["backward"] == "loss.sum() / batch"
    torch.manual_seed(config["torch_manual_seed"])
    loss = make_loss(config["loss"])(net, images, labels, make_augment(config["augment"]))
    (loss.sum() / images.shape[0]).backward()
    return loss.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("entry", g.entries("losses", has_network), ids=g.entry_id)
def test_golden_network(entry):
    arrays = g.arrays(entry)
    loss, grads = measured(entry["id"])
    g.check(entry, "out/loss", loss)
    for name in arrays:
        if name.startswith("grad/"):
            g.check(entry, name, grads[name[len("grad/") :]])


@pytest.mark.parametrize("entry", g.entries("losses", has_network), ids=g.entry_id)
def test_golden_network_gradient_heads(entry):
    """Sums and first values of every gradient, on the scale of that gradient's own entries."""
    arrays = g.arrays(entry)
    _, grads = measured(entry["id"])
    keys = [str(key) for key in arrays["gradhead_keys"]]
    assert set(keys) == set(grads)
    limits = g.tolerance(entry, "grad")
    for key, want in zip(keys, arrays["gradhead_rows"], strict=True):
        (got,), grad = g.heads([grads[key]]), grads[key]
        present = ~np.isnan(want)
        assert np.array_equal(present, ~np.isnan(got)), key
        largest = float(grad.abs().max())
        # a sum of n values may be off by n times what one value may
        scale = np.array([grad.numel()] * 2 + [1] * 6) * limits.get("atol_rel_max", 0) * largest
        bound = limits.get("rtol", 0) * np.abs(want) + scale + limits.get("atol", 0)
        error = np.abs(got - want)
        assert np.all(error[present] <= bound[present]), (key, got, want)


def other_products():
    """None where this machine multiplies matrices as that of the golden data did, otherwise why bits differ."""
    if (reason := g.same_arithmetic()) is not None:
        return reason
    arrays = {name: torch.from_numpy(value) for name, value in g.arrays(g.by_id("blocks/attention_fp32")).items()}
    q, k = (arrays[f"in/{name}"].requires_grad_() for name in ("q", "k"))
    w = recorded_order.AttentionWeights.apply(q, k)
    w.backward(arrays["in/grad_w"])
    same = [torch.equal(x, arrays[f"out/{name}"]) for x, name in ((w, "w"), (q.grad, "grad_q"), (k.grad, "grad_k"))]
    return None if all(same) else "matrix products of this machine round otherwise than those of the golden data"


@pytest.mark.parametrize("id", ["losses/edm_net_dropout", "losses/edm_adm_net_dropout"])
def test_gradient_bits(id, monkeypatch):
    """The loss and every gradient with augmentation and dropout are those of the published code, to the bit.

    On the reference backend, with convolutions and softmax that add in the order of the machine of the golden data.
    """
    if (reason := other_products()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(_layers, "conv2d", recorded_order.conv2d)
    monkeypatch.setattr(attention_module, "attention_weights", recorded_order.AttentionWeights.apply)
    entry = g.by_id(id)
    arrays = g.arrays(entry)
    with use_backend("reference"):
        loss, grads = measured.__wrapped__(id)
    g.check_bits(entry, "out/loss", loss)
    for name in (name for name in arrays if name.startswith("grad/")):
        g.check_bits(entry, name, grads[name[len("grad/") :]])
    rows = g.heads(grads[str(key)] for key in arrays["gradhead_keys"])
    np.testing.assert_array_equal(rows, arrays["gradhead_rows"])
