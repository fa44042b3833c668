"""Whole networks for verify and bench: by name, with weights worth measuring, their inputs, and their float64 truth."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm_fast.backend import use_backend
from edm_fast.checkpoint import DEMOS, load
from edm_fast.errors import UserError, near
from edm_fast.files import is_url
from edm_fast.networks import PRESETS, preset
from edm_fast.plan import accelerate
from edm_fast.sampling.seeds import one_hot

PRECISIONS = ("exact", "fp32", "bf16")


class Inputs(NamedTuple):
    """One evaluation: net(x, sigma, labels)."""

    x: torch.Tensor  # (N, C, R, R) float32
    sigma: torch.Tensor  # () float32
    labels: torch.Tensor | None  # (N, label_dim) float32


def check_name(name: str) -> None:
    """UserError unless `name` may be a network: a demo model, a preset, an address, or something on the disk."""
    if name not in PRESETS and name not in DEMOS and not is_url(name) and not (name and Path(name).exists()):
        raise UserError(
            f"network {name!r} is no file{near(name, [*DEMOS, *PRESETS])}; expected a checkpoint, or one of "
            f"{', '.join([*DEMOS, *PRESETS])}"
        )


def open_network(name: str, device: torch.device | str = "cpu") -> Any:
    """A network in float32 and eval mode: a demo model, a preset with fresh weights, or a checkpoint."""
    check_name(name)
    if name in PRESETS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net: Any = preset(name).eval().requires_grad_(False)
        randomise(net)
        net = net.to(device)
    else:
        net = load(name, device=device)
    net.use_fp16 = False
    return net


@torch.no_grad()
def randomise(net: torch.nn.Module, seed: int = 0) -> None:
    """Fresh networks start with layers at zero, which would hide any error before them: give every term a weight.

    Weights far below a variance of 1 / fan_in are drawn anew with it; biases and the gains of norms move by 0.1. EDM2's
    gains, numbers that start at 0, become 0.7, so that what is measured is not c_skip x.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 0:
            parameter.fill_(0.7)
            continue
        if parameter.ndim == 1:
            parameter.add_(noise, alpha=0.1)
            continue
        deviation = 1 / math.sqrt(parameter[0].numel())
        if parameter.square().mean().sqrt() < 0.1 * deviation:
            parameter.copy_(noise * deviation)


def inputs(net: Any, batch: int, sigma: float, seed: int = 0, device: torch.device | str = "cpu") -> Inputs:
    """Images of deviation 0.5 under noise of level sigma, and random classes; the same for every batch as far as it
    goes.
    """
    generator = torch.Generator().manual_seed(seed)
    level = net.round_sigma(torch.tensor(sigma, dtype=torch.float32)).reshape(())
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    x = torch.stack([torch.randn(shape, generator=generator) for _ in range(batch)]) * math.hypot(0.5, float(level))
    labels = None
    if net.label_dim:
        generator.manual_seed(seed)
        labels = one_hot(torch.randint(net.label_dim, (batch,), generator=generator), net.label_dim).to(device)
    return Inputs(x.to(device), level.to(device), labels)


class Exact:
    """D = c_skip x + c_out F(c_in x; c_noise) in float64 on the reference backend, from the same weights.

    Karras et al. 2022, Eq. 7. Tables a network keeps in float32 (frequencies, noise levels) are taken as they are.
    """

    def __init__(self, net: Any) -> None:
        self.net = net
        self.raw = copy.deepcopy(net.raw).double()

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        x, sigma = x.double(), sigma.double().reshape(-1, 1, 1, 1)
        labels = self.net.labels(labels, x)
        c_skip, c_out, c_in, c_noise = self.net.coefficients(sigma)
        with use_backend("reference"):
            F_x = self.raw(
                c_in * x, c_noise.double().flatten(), class_labels=None if labels is None else labels.double()
            )
        return c_skip * x + c_out * F_x[:, : self.net.img_channels]


def noise_embedding(raw: torch.nn.Module) -> str:
    """The attribute of a raw network that takes noise levels to waves."""
    return "map_noise" if hasattr(raw, "map_noise") else "emb_fourier"


class _HalfCore(torch.nn.Module):
    """A raw network whose weights and images are of 16 bits and channels last."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        name = noise_embedding(model)
        noise = copy.deepcopy(getattr(model, name))  # frequencies of 8 bits would be other frequencies
        self.model = copy.deepcopy(model).to(dtype, memory_format=torch.channels_last)
        setattr(self.model, name, noise)
        self.dtype = dtype

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.model(x.to(self.dtype, memory_format=torch.channels_last), *args, **kwargs)


def half(net: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The best of plain PyTorch in 16 bits: weights cast once, no autocast; the preconditioner stays in float32."""
    copied = copy.copy(net)
    copied._modules = {**net._modules, net.raw_name: _HalfCore(net.raw, dtype)}
    return copied


def accelerated(net: Any, precision: str, **limits: Any) -> Any:
    """edm_fast.accelerate(net, precision); UserError if that cannot be done here."""
    return accelerate(net, precision=precision, **limits)


def relative_error(got: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """||got - exact|| / ||exact||, all tensors taken as one vector."""
    error = math.fsum((g.double() - e.double()).square().sum().item() for g, e in zip(got, exact, strict=True))
    return math.sqrt(error / math.fsum(e.double().square().sum().item() for e in exact))
