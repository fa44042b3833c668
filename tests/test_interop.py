"""Networks of this package in other libraries: the same outputs and the same images."""

import sys

import pytest
import torch

from edm_fast import accelerate, interop, native, sample
from edm_fast.errors import UserError
from helpers import peers
from helpers.planned_networks import network

LABELS = torch.eye(4)[[1, 3]]


@pytest.fixture(params=["plain", "accelerated"])
def net(request):
    if request.param == "accelerated" and native.cpu_reason() is not None:
        pytest.skip(native.cpu_reason())
    found = network("ddpmpp")
    return accelerate(found) if request.param == "accelerated" else found


def latents():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("adapter", [interop.azula, interop.deepinv, interop.diffusers])
@pytest.mark.parametrize("wrong", [5, torch.nn.Linear(2, 2), "demo"])
def test_what_is_no_denoiser(adapter, wrong):
    with pytest.raises(UserError, match="net is of type .*; expected a denoiser"):
        adapter(wrong)


def test_azula(net):
    peers.expect("azula")
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    denoiser = interop.azula(net)
    sampler = DDIMSampler(denoiser, start=1.0, stop=0.0, steps=6, silent=True, dtype=torch.float64)
    levels = [denoiser.schedule.sigma(t).item() for t in sampler.timesteps]
    with torch.no_grad():
        theirs = sampler(latents().double() * levels[0], class_labels=LABELS)
        ours = sample(net, latents(), LABELS, solver="euler", levels=levels)
        assert torch.allclose(theirs, ours, atol=1e-5)
        # another schedule, a time for each image
        schedule, t = VPSchedule(), torch.tensor([0.3, 0.8])
        denoiser = interop.azula(net, schedule)
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in schedule(t))
        wanted = net(latents() / alpha, sigma / alpha, LABELS)
        assert torch.equal(denoiser(latents(), t, class_labels=LABELS).mean, wanted)
    x = latents().requires_grad_()
    denoiser(x, t, class_labels=LABELS).mean.sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_diffusers(net, name):
    peers.expect("diffusers")
    import diffusers

    scheduler, unet = getattr(diffusers, name)(sigma_data=net.sigma_data), interop.diffusers(net)
    scheduler.set_timesteps(6)
    assert unet.config.in_channels == 3 and unet.config.sample_size == 8
    x = latents() * scheduler.sigmas[0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            F_x = unet(scheduler.scale_model_input(x, t), t, class_labels=torch.tensor([1, 3])).sample
            x = scheduler.step(F_x, t, x).prev_sample
        solver = {"solver": "euler"} if "Euler" in name else {"solver": "dpmpp", "order": 2}
        ours = sample(net, latents(), LABELS, levels=scheduler.sigmas.tolist(), **solver)
    assert torch.allclose(x.double(), ours, atol=1e-4)


def test_k_diffusion(net):
    peers.expect("k_diffusion")
    levels = torch.tensor([80.0, 10, 2, 0.5, 0.1, 0])
    extra = {"class_labels": LABELS}
    with torch.no_grad():
        theirs = peers.k_diffusion().sample_heun(net, latents() * 80, levels, extra_args=extra, disable=True)
        ours = sample(net, latents(), LABELS, solver="heun", levels=levels.tolist())
    assert torch.allclose(theirs.double(), ours, atol=1e-4)


def test_deepinv(net):
    dinv = peers.deepinv()
    denoiser, x = interop.deepinv(net), latents() / 4 + 0.5
    with torch.no_grad():
        for sigma in (0.3, torch.tensor([0.3, 2.0])):
            level = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
            wanted = (net(2 * x - 1, 2 * level, LABELS) + 1) / 2
            assert torch.equal(denoiser(x, sigma, class_labels=LABELS), wanted)
        assert torch.equal(denoiser(x, 0.3, input_in_minus_one_one=True), net(x, 0.3))
        # one of its algorithms keeps the pixels that are known
        mask = torch.ones(1, 3, 8, 8)
        mask[..., 3:5] = 0
        physics = dinv.physics.Inpainting((3, 8, 8), mask=mask, noise_model=dinv.physics.GaussianNoise(0.01))
        found = dinv.sampling.DDRM(denoiser, sigmas=[0.4, 0.2, 0.05], eta=0.85)(x * mask, physics)
    assert found.shape == x.shape and found.isfinite().all()
    assert ((found - x) * mask).abs().max() < 0.2 < ((found - x) * (1 - mask)).abs().max()
    image = x.clone().requires_grad_()
    denoiser(image, 0.3).sum().backward()
    assert image.grad.abs().max() > 0


def test_what_does_not_fit(monkeypatch):
    with pytest.raises(UserError, match="precondition as EDMPrecond .* not as VPPrecond"):
        interop.diffusers(network("ddpmpp-vp"))
    for name in ("azula.denoise", "deepinv.models", "diffusers"):
        monkeypatch.setitem(sys.modules, name, None)
    for adapter in (interop.azula, interop.deepinv, interop.diffusers):
        with pytest.raises(UserError, match="expected it to be installed"):
            adapter(network("ddpmpp"))
