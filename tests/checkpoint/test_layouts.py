"""State dicts of guided-diffusion, score_sde and deepinv: the converted network gives what the source network gives."""

import json

import pytest
import torch

import edm_fast
from edm_fast.networks import ARCHITECTURES
from helpers import peers
from helpers.command_line import refused, run
from helpers.source_networks import GuidedDiffusion, ScoreSDE

ADM = {"model_type": "DhariwalUNet", "model_channels": 128, "channel_mult": [1, 2], "num_blocks": 1}
ADM |= {"img_resolution": 8, "img_channels": 3, "attn_resolutions": [4], "label_dim": 5}
SONG = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
SONG |= {"attn_resolutions": [4]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(cls, **options):
    """A source network all of whose weights count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls(**options).eval().requires_grad_(False)
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return net


def described(name="net.json", **config):
    with open(name, "w") as file:
        json.dump(config, file)
    return name


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def close(found, wanted):
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("new_order", [True, False])
def test_guided_diffusion(new_order):
    source = made(GuidedDiffusion, new_order=new_order)
    # by DataParallel and torch.compile
    torch.save({f"module._orig_mod.{name}": t for name, t in source.state_dict().items()}, "adm.pt")
    preset = described(class_name="iDDPMPrecond", init_kwargs=ADM, use_new_attention_order=new_order)
    assert run("convert", f"--preset={preset}", "adm.pt", "adm.safetensors").exit_code == 0
    net = edm_fast.load("adm.safetensors")
    x, sigma = images(), net.u[[600, 850]]
    labels = torch.tensor([4, 1])
    with torch.no_grad():
        F_x = source(x / (1 + sigma**2).sqrt()[:, None, None, None], torch.tensor([999.0 - 600, 999 - 850]), labels)
        close(net(x, sigma, torch.eye(5)[labels]), x - sigma[:, None, None, None] * F_x[:, :3])
        # the other six channels are variances: a preconditioner without them leaves them out
        vp = edm_fast.load("adm.pt", preset=described(**{**json.load(open(preset)), "class_name": "VPPrecond"}))
        close(
            vp.raw(x, torch.tensor([9.0, 700]), torch.eye(5)[labels]),
            source(x, torch.tensor([9.0, 700]), labels)[:, :3],
        )


CASES = {
    "DDPM++": ({}, "ddpmpp", {}),
    "NCSN++": ({"fourier": True, "pyramid": "residual"}, "ncsnpp", {}),
    "skips": ({"fourier": True, "pyramid": "skip"}, "ncsnpp", {"encoder_type": "skip", "decoder_type": "skip"}),
}


@pytest.mark.parametrize("case", CASES)
def test_score_sde(case):
    """From a file of a training run, whose average has no names."""
    options, arch, changes = CASES[case]
    source = made(ScoreSDE, **options)
    trained = {name: torch.zeros_like(t) for name, t in source.state_dict().items()}
    for name in ("sigmas", "all_modules.0.W") if source.fourier else ("sigmas",):
        trained[name] = source.state_dict()[name]
    averages = [
        p.clone() for p in source.parameters() if p.ndim != 1 or p is not getattr(source.all_modules[0], "W", None)
    ]
    run_state = {"model": {f"module.{name}": t for name, t in trained.items()}, "step": 7}
    torch.save({**run_state, "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": averages}}, "checkpoint_7.pth")
    kwargs = {**SONG, **{key: v for key, v in ARCHITECTURES[arch].items() if key not in SONG}, **changes}
    cls = "VEPrecond" if source.fourier else "VPPrecond"
    net = edm_fast.load("checkpoint_7.pth", preset=described(class_name=cls, init_kwargs=kwargs))
    x, sigma = images(), torch.tensor([0.3, 40.0])
    wide = sigma[:, None, None, None]
    with torch.no_grad():
        if source.fourier:
            close(net(x, sigma), x + wide * source(x, sigma / 2))
        else:
            t = (torch.sqrt(0.1**2 + 2 * 19.9 * torch.log(1 + sigma**2)) - 0.1) / 19.9
            close(net(x, sigma), x - wide * source(x / (1 + wide**2).sqrt(), 999 * t))
        plain = edm_fast.load("checkpoint_7.pth", key="model", preset="net.json")
    assert not plain.model.map_layer0.weight.any() and net.model.map_layer0.weight.all()


@pytest.mark.parametrize("kind", ["ncsn", "ddpm", "adm"])
def test_deepinv(kind):
    models = peers.deepinv().models
    own = {"img_resolution": 8, "model_channels": 128, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4]}
    arch = {"ncsn": "ncsnpp", "ddpm": "ddpmpp", "adm": "adm"}[kind]
    cls, names = (models.ADMUNet, {}) if kind == "adm" else (models.NCSNpp, {"model_type": kind})
    source = made(cls, **own, **names, label_dim=5, augment_dim=0, pretrained=None, pixel_std=0.5)
    torch.save(source.state_dict(), "deepinv.pt")
    kwargs = {**ARCHITECTURES[arch], **own, "img_channels": 3, "label_dim": 5}
    net = edm_fast.load("deepinv.pt", preset=described(class_name="EDMPrecond", init_kwargs=kwargs))
    x, sigma, labels = images(), torch.tensor([0.2, 5.0]), torch.eye(5)[[4, 1]]
    with torch.no_grad():
        close(net(x, sigma, labels), source(x, sigma, labels))


def test_refusals():
    adm, song = made(GuidedDiffusion).state_dict(), made(ScoreSDE).state_dict()
    ours = {"adm": ADM, "song": {**SONG, **{k: v for k, v in ARCHITECTURES["ddpmpp"].items() if k not in SONG}}}

    def changed(weights, drop=None, **more):
        return {**{name: t for name, t in weights.items() if name != drop}, **more}

    cases = [
        (adm, "adm", {}, {}, "'input_blocks.3.1.qkv.weight' may be in either order of guided-diffusion"),
        (
            adm,
            "song",
            {},
            {},
            "'input_blocks.0.0.weight' is a name of guided-diffusion; expected a preset of DhariwalUNet",
        ),
        (adm, "adm", {"augment_dim": 9}, {"use_new_attention_order": True}, "has no tensor for 'map_augment.weight'"),
        (adm, "adm", {"model_channels": 64}, {"use_new_attention_order": True}, "a norm of 64 channels, which guided"),
        (adm, "adm", {"label_dim": 4}, {"use_new_attention_order": True}, "'label_emb.weight' has shape [5, 512]"),
        (adm, "adm", {}, {"use_new_attention_order": 1}, 'has "use_new_attention_order" 1; expected true or false'),
        (
            changed(song, "all_modules.4.Conv_0.bias"),
            "song",
            {},
            {},
            "misses 1 tensors of score_sde, the first is 'all_mo",
        ),
        (changed(song, x=torch.ones(1)), "song", {}, {}, "holds 1 tensors of score_sde too many, the first is 'x'"),
        (song, "song", {"attn_resolutions": []}, {}, "misses "),
        (
            {f"down.{i}.weight": torch.ones(2) for i in range(9)},
            "song",
            {},
            {},
            "no layout that is known, the first is 'down.0",
        ),
    ]
    for weights, kind, kwargs, order, message in cases:
        torch.save(weights, "net.pt")
        cls = "iDDPMPrecond" if kind == "adm" else "VPPrecond"
        preset = described(class_name=cls, init_kwargs={**ours[kind], **kwargs}, **order)
        assert message in refused("convert", f"--preset={preset}", "net.pt", "x.safetensors")
    for text, message in {"[]": "is no JSON object with", '{"class_name": 1}': "is no JSON object with"}.items():
        open("net.json", "w").write(text)
        assert message in refused("convert", "--preset=net.json", "net.pt", "x.safetensors")
    assert "preset none.json cannot be read (No such file" in refused("convert", "--preset=none.json", "net.pt", "x")
