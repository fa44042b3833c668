"""Other packages' solvers on a denoiser in closed form; x in EDM's form, float64.

`make test` installs the packages. Elsewhere those that are absent are skipped; one that breaks is an error.
"""

import functools
import importlib
import importlib.util
import sys
import types
import unittest.mock
from pathlib import Path

import pytest
import torch
from scipy.integrate import solve_ivp


def expect(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; make test installs it")


@functools.cache
def deepinv():
    """It imports torchvision, whose compiled part of another build than torch's does not load (PyPI's needs CUDA).

    Nothing here needs that part, but torchvision tells torch the shapes of its ops when it is imported.
    """
    sys.path.append(f"{sys.prefix}/deepinv")
    expect("deepinv")
    with unittest.mock.patch.object(torch.library, "register_fake", lambda name: lambda function: function):
        importlib.import_module("torchvision")
    return importlib.import_module("deepinv")


@functools.cache
def k_diffusion():
    """k_diffusion.sampling alone: the package imports torchvision, wandb and more for its training."""
    folder = Path(importlib.util.find_spec("k_diffusion").origin).parent
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__, package.utils = [str(folder)], utils
    utils.append_dims = lambda x, ndim: x.reshape(*x.shape, *[1] * (ndim - x.ndim))
    names = {"k_diffusion": package, "k_diffusion.utils": utils}
    sys.modules |= names
    found = importlib.import_module("k_diffusion.sampling")
    for name in (*names, found.__name__):
        del sys.modules[name]
    return found


def by_k_diffusion(function, net, x, levels, noise=None, **options):
    """noise: the draws in order, for its stochastic samplers."""
    expect("k_diffusion")
    if noise is not None:
        left = iter(noise)
        options["noise_sampler"] = lambda sigma, sigma_next: next(left)
    sigmas = torch.tensor(levels, dtype=torch.float64)
    model = lambda x, sigma: net.denoise(x, sigma[0], None)  # noqa: E731
    return getattr(k_diffusion(), f"sample_{function}")(model, x * levels[0], sigmas, disable=True, **options)


def by_azula(sampler, net, x, sigma_min, sigma_max, steps, **options):
    """Along levels that are even in log sigma."""
    expect("azula")
    import azula.denoise
    import azula.noise
    import azula.sample

    class Denoiser(azula.denoise.Denoiser):
        schedule = azula.noise.VESchedule(sigma_min, sigma_max)

        def forward(self, x, t):
            return azula.denoise.DiracPosterior(mean=net.denoise(x, self.schedule.sigma(t), None))

    settings = {"start": 1.0, "stop": 0.0, "steps": steps, "silent": True, "dtype": torch.float64}
    return getattr(azula.sample, f"{sampler}Sampler")(Denoiser(), **settings, **options)(x * sigma_max)


def by_diffusers(scheduler, net, x, levels, **config):
    """Its schedulers for latent models run on x / sqrt(1 + sigma^2)."""
    expect("diffusers")
    module = {"UniPC": "unipc_multistep", "DEIS": "deis_multistep"}[scheduler]
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    made = getattr(module, f"{scheduler}MultistepScheduler")(prediction_type="sample", **config)
    steps = len(levels) - 1
    made.set_timesteps(steps)
    made.sigmas, made.timesteps = torch.tensor(levels, dtype=torch.float64), torch.arange(steps, 0, -1)
    made.set_begin_index(0)
    scales = [(1 + sigma**2) ** 0.5 for sigma in levels]
    state = x * levels[0] / scales[0]
    for sigma, scale, t in zip(levels, scales, made.timesteps):
        D = net.denoise(state * scale, torch.tensor(sigma, dtype=torch.float64), None)
        state = made.step(D, t, state).prev_sample
    return state * scales[-1]


def by_scipy(net, x, sigma, sigma_next):
    """The ODE from one level to another by DOP853, in log sigma."""

    def slope(u, flat):
        x = torch.from_numpy(flat).reshape(shape)
        return (x - net.denoise(x, torch.tensor(u, dtype=torch.float64).exp(), None)).flatten().numpy()

    shape = x.shape
    ends = torch.tensor([sigma, sigma_next], dtype=torch.float64).log().tolist()
    found = solve_ivp(slope, ends, x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-13)
    return torch.from_numpy(found.y[:, -1]).reshape(shape)
