"""Dropout: one mask for each seed, whatever the layout of memory."""

import functools

import pytest
import torch
import torch.nn.functional as F

from edm_fast import networks, use_backend
from edm_fast.evaluation import _networks
from edm_fast.networks._layers import drop_values
from edm_fast.training import EDM2Loss, EDMLoss


def dropped(function, x, dy, p, training):
    torch.manual_seed(0)
    x = x.detach().requires_grad_()
    y = function(x, p, training)
    return y, *torch.autograd.grad(y, x, dy)


def laid_out(layout):
    """To lay out an image so, and whether one is."""
    if layout == "columns first":
        return lambda t: t.mT.contiguous().mT, lambda t: t.mT.is_contiguous()
    both = torch.Tensor.contiguous, torch.Tensor.is_contiguous
    return (functools.partial(function, memory_format=layout) for function in both)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "columns first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 3, 4, 4), (3, 1, 5, 5)])
@pytest.mark.parametrize(("p", "training"), [(0.3, True), (0.3, False), (0.0, True), (1.0, True)])
def test_masks_and_bits_are_those_of_channels_first(shape, dtype, layout, p, training):
    x, dy = torch.randn(2, *shape, dtype=dtype)
    lay, lies = laid_out(layout)
    want = dropped(F.dropout, x, dy, p, training)
    for got, expected in zip(dropped(drop_values, lay(x), lay(dy), p, training), want):
        assert lies(got) and torch.equal(got, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_it_is_the_same(layout):
    x, dy = (t.contiguous(memory_format=layout) for t in torch.randn(2, 2, 5, 7, 9))
    compiled = torch.compile(drop_values, backend="eager", fullgraph=True)
    for got, want in zip(dropped(compiled, x, dy, 0.3, True), dropped(drop_values, x, dy, 0.3, True)):
        assert torch.equal(got, want) and got.stride() == want.stride()


KIND = {"song": "SongUNet", "dhariwal": "DhariwalUNet"}


@pytest.mark.parametrize("kind", ["song", "dhariwal", "edm2"])
def test_training_with_dropout_is_that_of_the_published_code(kind):
    """Images large enough for the native convolutions, which leave them channels last."""
    shared = {"img_resolution": 16, "img_channels": 3, "channel_mult": [1, 2], "dropout": 0.4, "num_blocks": 1}
    shared |= {"model_channels": 32, "attn_resolutions": [8]}
    torch.manual_seed(0)
    if kind == "edm2":
        net, loss = networks.build("Precond", {**shared, "label_dim": 0, "channels_per_head": 32}), EDM2Loss()
    else:
        net, loss = networks.build("EDMPrecond", {**shared, "model_type": KIND[kind]}), EDMLoss()
    _networks.randomise(net)
    net.train().requires_grad_(True)
    images, found = torch.randn(4, 3, 16, 16).clamp(-1, 1), []
    for backend in ("reference", "auto"):
        torch.manual_seed(1)
        with use_backend(backend):
            value = loss(net, images).sum()
        found.append((value, *torch.autograd.grad(value, list(net.parameters()), allow_unused=True)))
    for got, want in zip(*reversed(found)):
        assert (got is None) == (want is None)
        if want is not None:
            assert (got - want).norm() <= 1e-4 * want.norm() + 1e-7
