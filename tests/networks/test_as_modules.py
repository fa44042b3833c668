"""Networks as torch's modules: copies, torch.export, inference mode, threads, every type and layout of the input."""

import concurrent.futures
import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch

from edm_fast import accelerate, networks
from edm_fast.evaluation._networks import inputs, relative_error
from helpers import native_conv as nc
from helpers.planned_networks import network
from helpers.tiny_networks import tiny

FAMILIES = {
    "VPPrecond": {},
    "VEPrecond": {**networks.ARCHITECTURES["ncsnpp"], "model_channels": 8, "channel_mult": [1, 2]},
    "iDDPMPrecond": {"model_type": "DhariwalUNet", "label_dim": 4},
    "EDMPrecond": {"label_dim": 4},
}
WAYS = ["plain", pytest.param("accelerated", marks=nc.needs_native)]


def prepared(net, way):
    return net if way == "plain" else accelerate(net)


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
    "share_memory": lambda net: copy.deepcopy(net).share_memory(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_copies(family, how):
    net = tiny(family, **FAMILIES[family])
    again, call = COPIES[how](net), inputs(net, 2, 0.7)
    assert type(again) is type(net) and again.init_kwargs == net.init_kwargs and not again.training
    assert torch.equal(again(*call), net(*call))
    if how != "copy":  # the others have weights of their own
        next(again.parameters()).add_(1)
        assert not torch.equal(again(*call), net(*call))


@pytest.mark.parametrize("family", ["VEPrecond", "iDDPMPrecond"])
def test_torch_export(family):
    net = tiny(family, **FAMILIES[family])
    x, sigma, labels = inputs(net, 2, 0.7)
    exported = torch.export.export(net, (x, sigma, labels))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    other = 2 * x
    for program in (exported, torch.export.load(file)):
        assert relative_error([program.module()(other, sigma, labels)], [net(other, sigma, labels)]) <= 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_inference_mode(way):
    net = network("ddpmpp")
    want = net(*inputs(net, 2, 0.7))
    with torch.inference_mode():
        there = prepared(network("ddpmpp"), way)  # its weights are tensors of inference mode, as are these inputs
        call = inputs(there, 2, 0.7)
        inside = there(*call)
    for got in (inside, there(*call), prepared(net, way)(*call)):
        assert relative_error([got], [want]) <= 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_eight_threads(way):
    net = prepared(network("ddpmpp"), way)
    x, sigma, labels = inputs(net, 8, 0.7)
    want = [net(x[i : i + 1], sigma, labels[i : i + 1]) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: net(x[i % 8, None], sigma, labels[i % 8, None]), range(32)))
    assert all(torch.equal(got, want[i % 8]) for i, got in enumerate(found))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a part of a larger image": lambda x: torch.zeros(4, 5, 9, 18).to(x.dtype)[:, 1:4, 1:, 1:17:2].copy_(x),
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "one image for all": lambda x: x[:1].expand(4, 3, 8, 8),
}
LEVELS = {
    "()": lambda sigma: sigma[1],
    "(1,)": lambda sigma: sigma[1:2],
    "(N,)": lambda sigma: sigma,
    "(N, 1, 1, 1)": lambda sigma: sigma.reshape(-1, 1, 1, 1),
    "with a stride": lambda sigma: torch.stack([sigma, sigma + 1], 1)[:, 0],
}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("way", WAYS)
def test_every_type_and_layout(way):
    """The result is that of the same numbers in contiguous float32, and float32 whatever comes in."""
    net = network("ddpmpp", num_blocks=0)
    run = prepared(net, way)
    x, _, labels = inputs(net, 4, 0.7)
    sigma = torch.tensor([0.1, 0.7, 2.0, 0.3])
    cases = [(dtype, layout, torch.float32, "(N,)") for dtype, layout in itertools.product(FLOATS, LAYOUTS)]
    cases += [(torch.float32, "contiguous", dtype, shape) for dtype, shape in itertools.product(FLOATS, LEVELS)]
    for dtype, layout, sigma_dtype, shape in cases:
        image, level = LAYOUTS[layout](x.to(dtype)), LEVELS[shape](sigma.to(sigma_dtype))
        kept = image.clone()
        want = net(image.float().contiguous(), level.float().contiguous(), labels)
        got = run(image, level, labels)
        assert got.dtype == torch.float32 and got.shape == x.shape, (dtype, layout, sigma_dtype, shape)
        assert relative_error([got], [want]) <= 1e-5, (dtype, layout, sigma_dtype, shape)
        assert torch.equal(image, kept)


@pytest.mark.parametrize("way", WAYS)
def test_numbers_for_sigma_and_rows_for_labels(way):
    net = network("ddpmpp")
    run = prepared(net, way)
    x, _, labels = inputs(net, 2, 0.7)
    want = net(x, torch.tensor(2.0), labels)
    for sigma in (2, 2.0, np.float32(2), np.float64(2), np.array([2.0]), torch.tensor(2), torch.tensor([2, 2])):
        assert relative_error([run(x, sigma, labels)], [want]) <= 1e-5, sigma
    for given in (labels.double(), labels.bool(), labels.long(), labels.t().contiguous().t()):
        assert relative_error([run(x, 2.0, given)], [want]) <= 1e-5, given.dtype
