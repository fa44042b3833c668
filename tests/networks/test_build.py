"""build(), presets and the promises of the preconditioners that golden data cannot show."""

import pytest
import torch

from edm_fast import UserError, accelerate, native, networks

TINY = {"img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
TINY |= {"attn_resolutions": [4], "dropout": 0.0}


@pytest.mark.parametrize("class_name", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"])
@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_init_kwargs_build_the_same_network(class_name, model_type):
    torch.manual_seed(0)
    net = networks.build(class_name, {**TINY, "model_type": model_type, "label_dim": 3})
    torch.manual_seed(0)
    again = networks.build(class_name, net.init_kwargs)
    assert again.init_kwargs == net.init_kwargs
    for (name, value), other in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_defaults_are_left_out_of_init_kwargs():
    net = networks.EDMPrecond(**TINY, sigma_data=0.5, use_fp16=True)
    assert "sigma_data" not in net.init_kwargs and net.init_kwargs["use_fp16"] is True


@pytest.mark.parametrize("name", sorted(networks.PRESETS))
def test_presets_build(name):
    with torch.device("meta"):
        net = networks.preset(name)
    assert net.label_dim == (0 if "uncond" in name else 10 if "cifar10" in name else 1000)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(UserError, match="edm-cifar10-32x32-cond-vp"):
        networks.preset("edm-cifar10")
    with pytest.raises(UserError, match=r"near names: edm-cifar10-32x32-cond-vp[,)]"):
        networks.preset("cifar10-32x32-cond-vp")


@pytest.mark.parametrize(
    ("resolution", "changes", "where"),
    [
        (32, {}, "16x16; middle block: 8x8"),
        (28, {}, "nowhere but in the middle block, 7x7 (levels are 28, 14, 7; listed: 16)"),
        (96, {"attn_resolutions": []}, "nowhere but in the middle block, 24x24 (levels are 96, 48, 24; listed: none)"),
        (32, {"attn_resolutions": [8, 16]}, "16x16, 8x8; middle block: 8x8"),
        # 8 channels are not a head of 64
        (64, {"model_type": "DhariwalUNet"}, "nowhere (levels are 64, 32, 16; listed: 32, 16, 8)"),
    ],
)
def test_where_a_network_attends(resolution, changes, where):
    shape = {"img_resolution": resolution, "channel_mult": [1, 1, 1], "model_type": "SongUNet"}
    kwargs = {name: value for name, value in TINY.items() if name != "attn_resolutions"}
    net = networks.build("EDMPrecond", {**kwargs, **shape, **changes})
    assert networks.attention_levels(net) == where
    if native.cpu_reason() is None:
        assert networks.attention_levels(accelerate(net.eval())) == where


BAD = {
    "unknown network class": ("Sequential", {}),
    "model_type": ("EDMPrecond", {"model_type": "os.system"}),
    "takes no keyword": ("EDMPrecond", {"colour": 1}),
    "near names: model_channels": ("EDMPrecond", {"model_chanels": 1}),
    "encoder_type": ("EDMPrecond", {"model_type": "DhariwalUNet", "encoder_type": "skip"}),
    "img_channels is missing": ("EDMPrecond", {"img_channels": None}),
    "img_resolution=": ("EDMPrecond", {"img_resolution": 10**9}),
    "model_channels=": ("EDMPrecond", {"model_channels": "128"}),
    "channel_mult=": ("EDMPrecond", {"channel_mult": [1, 0]}),
    "attn_resolutions=": ("EDMPrecond", {"attn_resolutions": ["16"]}),
    "resample_filter=": ("EDMPrecond", {"model_type": "SongUNet", "resample_filter": []}),
    "use_fp16=": ("EDMPrecond", {"use_fp16": "yes"}),
    "dropout='high'": ("EDMPrecond", {"dropout": "high"}),
    "dropout='2'": ("EDMPrecond", {"dropout": 2}),
    "sigma_data=": ("EDMPrecond", {"sigma_data": float("nan")}),
    "embedding_type=": ("EDMPrecond", {"model_type": "SongUNet", "embedding_type": "wave"}),
    "GroupNorm": ("EDMPrecond", {"model_channels": 3}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_configurations_give_one_line(message):
    class_name, changes = BAD[message]
    kwargs = {name: value for name, value in {**TINY, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=message) as error:
        networks.build(class_name, kwargs)
    assert "\n" not in str(error.value)


def test_up_and_down_together_are_refused():
    with pytest.raises(UserError, match="up and down"):
        networks.Conv2d(4, 4, kernel=3, up=True, down=True)


def test_unknown_init_mode_is_a_value_error():
    with pytest.raises(ValueError, match="init mode"):
        networks.weight_init([2, 2], "orthogonal", 2, 2)


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_one_noise_level_serves_the_whole_batch(model_type):
    torch.manual_seed(1)
    net = networks.EDMPrecond(**TINY, model_type=model_type, label_dim=3).eval()
    randomise(net)
    x = torch.randn(3, 1, 8, 8)
    one = net(x, torch.tensor(0.7), torch.eye(3)[:1])
    each = net(x, torch.full((3,), 0.7), torch.eye(3)[:1].expand(3, -1))
    torch.testing.assert_close(one, each, rtol=1e-5, atol=1e-6)


def test_soft_labels_interpolate_and_missing_labels_are_zeros():
    net = networks.EDMPrecond(**TINY, label_dim=3).eval()
    randomise(net)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 3.0])
    assert torch.equal(net(x, sigma), net(x, sigma, torch.zeros(1, 3)))
    assert not torch.equal(net(x, sigma), net(x, sigma, torch.eye(3)[:2]))


def test_label_dropout_acts_in_training_only():
    net = networks.EDMPrecond(**TINY, label_dim=3, label_dropout=1.0)
    randomise(net)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 3.0]), torch.eye(3)[:2]
    assert torch.equal(net.train()(x, sigma, labels), net(x, sigma))
    assert not torch.equal(net.eval()(x, sigma, labels), net(x, sigma))


def test_output_is_float32_whatever_the_input():
    net = networks.EDMPrecond(**TINY).eval()
    assert (
        net(torch.zeros(1, 1, 8, 8, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)).dtype == torch.float32
    )


def test_network_core_runs_in_half_precision():
    net = networks.EDMPrecond(**TINY, model_type="SongUNet").eval()
    randomise(net)
    x, noise = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.2])
    with torch.no_grad():
        half, full = net.model(x.to(torch.bfloat16), noise), net.model(x, noise)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - full).abs().max() / full.abs().max()) < 0.1


def randomise(net):
    """Weights that start at zero would hide what a test looks for."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
