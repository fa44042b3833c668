"""EDM2's networks: what their layers keep, what they refuse, and that they run as plans."""

import math

import pytest
import torch

from edm_fast import accelerate, networks
from edm_fast.errors import UserError
from edm_fast.evaluation import _networks
from helpers import native_conv as nc

TINY = {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "model_channels": 16, "channel_mult": [1, 2]}
TINY |= {"num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 16}


def tiny(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = networks.build("Precond", {**TINY, **changes}).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim == 0:
            parameter.fill_(0.75)
    return net


def rms(x):
    return float(x.detach().square().mean().sqrt())


def layers(generator):
    """Outputs of every layer for inputs of unit magnitude."""
    x, y = (torch.randn(8, 64, 16, 16, generator=generator) for _ in range(2))
    conv = networks.MPConv(64, 64, kernel=[3, 3])
    conv.weight.data *= 17  # of no effect
    yield "MPConv", conv(x)[..., 1:-1, 1:-1]
    yield "MPConv, training", conv.train()(x)[..., 1:-1, 1:-1]
    yield "linear", networks.MPConv(64, 256, kernel=[])(x.permute(0, 2, 3, 1).reshape(-1, 64))
    yield "MPFourier", networks.MPFourier(4096)(torch.linspace(-3, 3, 8))
    yield "mp_silu", networks.mp_silu(x)
    yield "mp_sum", networks.mp_sum(x, y, t=0.3)
    yield "normalize", networks.normalize(5 * x, dim=1)
    for part in networks.mp_cat(x, y[:, :16], t=0.3).split([64, 16], 1):
        yield (
            "mp_cat",
            part * math.sqrt(part.shape[1] / 80) / (0.3 if part.shape[1] == 16 else 0.7) * math.hypot(0.3, 0.7),
        )


def test_layers_keep_unit_magnitude():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {}
        for name, y in layers(torch.Generator().manual_seed(0)):
            assert abs(rms(y) - 1) < 0.03, (name, rms(y))
            found[name] = y
    assert len(found) == 8


def test_only_training_touches_the_stored_weights():
    layer = networks.MPConv(6, 5, kernel=[3, 3])
    layer.weight.data *= 3
    before = layer.weight.detach().clone()
    layer.eval()(torch.randn(1, 6, 4, 4))
    assert torch.equal(layer.weight, before)
    layer.train()(torch.randn(1, 6, 4, 4)).square().sum().backward()
    torch.testing.assert_close(layer.weight, networks.normalize(before))
    along = (layer.weight.grad * layer.weight).sum([1, 2, 3]).abs().max()
    assert along < 1e-3 * layer.weight.grad.norm()  # nothing pulls at the length of a weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "SongUNet"}, "Precond with UNet takes no keyword model_type"),
        ({"augment_dim": 9}, "takes no keyword augment_dim"),
        ({"label_dim": None}, "label_dim="),
        ({"clip_act": "none"}, "clip_act='none'; expected a number"),
        ({"res_balance": 2}, "res_balance='2'; expected a number from 0 to 1"),
        ({"channels_per_head": 0}, "channels_per_head='0'"),
        ({"channel_mult_emb": 0.5}, "channel_mult_emb='0.5'"),
    ],
)
def test_bad_keywords(changes, message):
    with pytest.raises(UserError, match=message):
        networks.build("Precond", {**TINY, **changes})
    with pytest.raises(UserError, match="label_dim is missing"):
        networks.build("Precond", {"img_resolution": 8, "img_channels": 3})


def test_how_it_was_built():
    net = tiny(clip_act=None, sigma_data=0.5, use_fp16=False, channel_mult_noise=2)
    assert net.init_kwargs == {**TINY, "clip_act": None, "use_fp16": False, "channel_mult_noise": 2}
    assert networks.attention_levels(net) == "4x4; middle block: 4x4"
    assert networks.attention_levels(tiny(attn_resolutions=[16])).startswith("nowhere but in the middle block, 4x4")
    D_x, u = net(torch.randn(3, 3, 8, 8), torch.tensor(2.0), return_logvar=True)
    assert D_x.shape == (3, 3, 8, 8) and u.shape == (1, 1, 1, 1)


@nc.needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_accelerated(dtype):
    net = tiny().to(dtype)
    fast, call = accelerate(net), _networks.inputs(net, 3, 0.7)
    want, u = net(*call, return_logvar=True)
    got, other = fast(*call, return_logvar=True)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5 and torch.equal(u, other)
    assert not torch.equal(fast(call.x, call.sigma), got)  # labels count
    assert _networks.relative_error([got], [_networks.Exact(net)(*call)]) < (1e-5 if dtype == torch.float32 else 1e-2)
