"""Objects from keyword dicts whose `class_name` says what to build; published dotted names and bare names both work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from edm_fast import networks
from edm_fast.data import ImageFolderDataset
from edm_fast.data._listing import LATENT_CHANNELS
from edm_fast.data.encoders import StabilityVAEEncoder, StandardRGBEncoder
from edm_fast.diffusion.loss import EDM2Loss, EDMLoss, VELoss, VPLoss
from edm_fast.errors import UserError
from edm_fast.training._augment import AugmentPipe

Kwargs = Mapping[str, Any]

LOSSES = {"VPLoss": VPLoss, "VELoss": VELoss, "EDMLoss": EDMLoss, "EDM2Loss": EDM2Loss}
AUGMENTS = {"AugmentPipe": AugmentPipe}
DATASETS = {"ImageFolderDataset": ImageFolderDataset}
OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}


def split(kwargs: Kwargs, what: str, default: str | None = None) -> tuple[str, dict[str, Any]]:
    """{"class_name": "a.b.Name", ...} -> ("Name", {...})."""
    rest = dict(kwargs)
    name = rest.pop("class_name", default)
    if not isinstance(name, str):
        raise UserError(f'{what} settings have no "class_name"; expected the name of a class')
    return name.rpartition(".")[2], rest


def build(known: Mapping[str, Callable[..., Any]], kwargs: Kwargs, what: str, default: str, *args: Any) -> Any:
    """The object of `known` that kwargs describe."""
    name, rest = split(kwargs, what, default)
    if name not in known:
        raise UserError(f"unknown {what} {name}; expected one of {', '.join(known)}")
    try:
        return known[name](*args, **rest)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what} {name}: {error}") from error


def build_dataset(kwargs: Kwargs) -> ImageFolderDataset:
    return build(DATASETS, kwargs, "data set", "ImageFolderDataset")


def build_encoder(dataset: ImageFolderDataset) -> Any:
    """What makes images to train on of the items of a data set, by their channels."""
    return StabilityVAEEncoder() if dataset.num_channels == LATENT_CHANNELS else StandardRGBEncoder()


def build_loss(kwargs: Kwargs) -> Any:
    return build(LOSSES, kwargs, "loss", "EDMLoss")


def build_augment(kwargs: Kwargs | None) -> AugmentPipe | None:
    return None if kwargs is None else build(AUGMENTS, kwargs, "augmentation", "AugmentPipe")


def build_optimizer(kwargs: Kwargs, parameters: Any) -> torch.optim.Optimizer:
    return build(OPTIMIZERS, kwargs, "optimizer", "Adam", parameters)


def build_network(kwargs: Kwargs, dataset: ImageFolderDataset) -> torch.nn.Module:
    """The network for the images and labels of `dataset`, in training mode."""
    name, rest = split(kwargs, "network", "EDMPrecond")
    channels = dataset.num_channels
    if channels == LATENT_CHANNELS and name == "Precond":
        channels //= 2
    elif channels not in (1, 3):
        raise UserError(f"images have {channels} channels; expected 1 (gray) or 3 (RGB), for EDM2 also 8 (latents)")
    rest.update(img_resolution=dataset.resolution, img_channels=channels, label_dim=dataset.label_dim)
    return networks.build(name, rest).train().requires_grad_(True)


def describe(net: torch.nn.Module) -> str:
    """ "EDMPrecond, 55,733,891 parameters, images of 32x32; attention at: ..." """
    parameters = sum(p.numel() for p in net.parameters())
    side, where = net.img_resolution, networks.attention_levels(net)
    return f"{type(net).__name__}, {parameters:,} parameters, images of {side}x{side}; attention at: {where}"


def describe_network(network_kwargs: Kwargs, dataset: ImageFolderDataset) -> str:
    """describe() of the network for a data set, without making its weights. UserError where the two do not fit."""
    with torch.device("meta"):
        return describe(build_network(network_kwargs, dataset))
