"""Networks of this package, accelerated or not, as other libraries call theirs. Each is imported when it is asked for.

k-diffusion needs no adapter: its samplers call model(x, sigma, **extra_args), as
sample_heun(net, x, sigmas, extra_args={"class_labels": labels}).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import check_network


def azula(net: Any, schedule: Any = None) -> Any:
    """`net` as an `azula.denoise.Denoiser`, for azula's samplers and its algorithms for inverse problems.

    denoiser(x_t, t, class_labels=None).mean is D(x_t / alpha_t; sigma_t / alpha_t), (B, C, R, R) of the type of x_t;
    t: () or (B,). Any of azula's schedules will do; by default `VESchedule` over the levels of the network, at most
    from 0.002 to 80. Gradients with respect to x_t are those of `net`. UserError if azula is not installed, or
    for what is no denoiser.
    """
    check_network(net)
    denoise, noise = _library("azula.denoise"), _library("azula.noise")
    if schedule is None:
        schedule = noise.VESchedule(max(net.sigma_min, 0.002), min(net.sigma_max, 80.0))

    class EDMDenoiser(denoise.Denoiser):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.schedule = net, schedule

        def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
            alpha, sigma = self.schedule(t)
            level = (sigma / alpha).flatten()
            alpha = alpha.reshape(*alpha.shape, *[1] * (x_t.ndim - alpha.ndim))
            return denoise.DiracPosterior(mean=self.net(x_t / alpha, level, class_labels).to(x_t))

    return EDMDenoiser()


def deepinv(net: Any) -> Any:
    """`net` as a `deepinv.models.Denoiser`, for deepinv's algorithms for inverse problems.

    denoiser(x, sigma, class_labels=None) takes and gives images in [0, 1], as all of deepinv: it is
    (D(2 x - 1; 2 sigma) + 1) / 2, (B, C, H, W) float32; sigma: a number, or a tensor () or (B,). With
    input_in_minus_one_one=True it is D itself. Gradients with respect to x are those of `net`. UserError if deepinv is
    not installed, or for what is no denoiser.
    """
    check_network(net)
    models = _library("deepinv.models")

    class EDMDenoiser(models.Denoiser):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(
            self,
            x: Tensor,
            sigma: Tensor | float,
            class_labels: Tensor | None = None,
            input_in_minus_one_one: bool = False,
            **ignored: Any,
        ) -> Tensor:
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).flatten()
            if input_in_minus_one_one:
                return self.net(x, sigma, class_labels)
            return (self.net(2 * x - 1, 2 * sigma, class_labels) + 1) / 2

    return EDMDenoiser().eval()


class _RawUNet(torch.nn.Module):
    """See `diffusers`."""

    def __init__(self, net: Any, library: Any) -> None:
        super().__init__()
        self.net, self.library = net, library
        self.config = library.configuration_utils.FrozenDict(
            sample_size=net.img_resolution,
            in_channels=net.img_channels,
            out_channels=net.img_channels,
            num_class_embeds=net.label_dim or None,
        )

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        n = len(sample)
        c_noise = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).flatten().expand(n)
        if class_labels is not None and not class_labels.is_floating_point():  # classes by number, as in diffusers
            class_labels = torch.nn.functional.one_hot(class_labels, self.net.label_dim).float()
        x = sample.float()
        F_x = self.net.raw(x, c_noise, class_labels=self.net.labels(class_labels, x)).float()
        if not return_dict:
            return (F_x,)
        return self.library.models.unets.unet_2d.UNet2DOutput(sample=F_x)


def diffusers(net: Any) -> Any:
    """The raw network F of an EDM or EDM2 `net` as a UNet for the EDM schedulers of diffusers, which precondition.

    unet(sample, timestep, class_labels=None).sample is F(sample; c_noise, class_labels), (N, C, R, R) float32.
    sample: (N, C, R, R), what `scheduler.scale_model_input` gives; timestep: one of `scheduler.timesteps`, which are
    c_noise = ln(sigma) / 4; class_labels: (N,) classes by number, or (N, label_dim). Take schedulers with
    prediction_type="epsilon" and the sigma_data of the network. UserError if diffusers is not installed, or for
    what is no denoiser, or one with other preconditioning.
    """
    check_network(net)
    library = _library("diffusers")
    if type(net).__name__ not in ("EDMPrecond", "Precond"):
        what = "the EDM schedulers of diffusers precondition as EDMPrecond and EDM2's Precond do"
        raise UserError(f"{what}, not as {type(net).__name__}")
    for name in ("configuration_utils", "models.unets.unet_2d"):
        _library(f"diffusers.{name}")
    return _RawUNet(net, library).eval()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name.partition('.')[0]} cannot be imported: {error}; expected it to be installed") from None
