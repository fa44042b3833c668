"""Objects from keyword dicts whose `class_name` says what to build; published dotted names and bare names both work."""

from __future__ import annotations

import contextlib
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edm_fast import networks
from edm_fast.backend import requested
from edm_fast.data import ImageFolderDataset
from edm_fast.data._listing import LATENT_CHANNELS
from edm_fast.data.encoders import StabilityVAEEncoder, StandardRGBEncoder
from edm_fast.diffusion.loss import EDM2Loss, EDMLoss, VELoss, VPLoss
from edm_fast.errors import UserError, one_line
from edm_fast.training._augment import AugmentPipe

Kwargs = Mapping[str, Any]

LOSSES = {"VPLoss": VPLoss, "VELoss": VELoss, "EDMLoss": EDMLoss, "EDM2Loss": EDM2Loss}
AUGMENTS = {"AugmentPipe": AugmentPipe}
DATASETS = {"ImageFolderDataset": ImageFolderDataset}
OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
UNIONS = (typing.Union, types.UnionType)
LISTS = (Sequence, list, tuple)


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
    with as_user_error(f"{what} {name}"):
        if known is not OPTIMIZERS:
            check_kinds(known[name], rest)
        return known[name](*args, **rest)


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """What torch raises for settings that it cannot take is told in one line."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
        raise UserError(f"{what}: {one_line(error)[:200]}") from error


def check_kinds(function: Callable[..., Any], kwargs: Kwargs) -> None:
    """UserError for a value that is not of the kind that the function names for its keyword."""
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    for name, value in kwargs.items():
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f"{name} is {value!r:.80}; expected {_words(hints[name])}")


def _words(hint: Any) -> str:
    """A type as it is called in Python and in JSON."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return " or ".join(map(_words, inside))
    if origin in LISTS:
        return f"a list of {_words(inside[0])}"
    if origin is Mapping:
        return "an object (dict)"
    return "nothing" if hint is types.NoneType else str(getattr(hint, "__name__", hint))


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in UNIONS:
        return any(_fits(value, one) for one in inside)
    if origin in LISTS:
        several = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
        return several and all(_fits(one, inside[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    return isinstance(value, origin or hint) if isinstance(origin or hint, type) else True


def build_dataset(kwargs: Kwargs) -> ImageFolderDataset:
    return build(DATASETS, kwargs, "data set", "ImageFolderDataset")


def build_encoder(dataset: ImageFolderDataset) -> Any:
    """What makes images to train on of the items of a data set, by their channels."""
    return StabilityVAEEncoder() if dataset.num_channels == LATENT_CHANNELS else StandardRGBEncoder()


def build_loss(kwargs: Kwargs) -> Any:
    return build(LOSSES, kwargs, "loss", "EDMLoss")


def build_augment(kwargs: Kwargs | None) -> AugmentPipe | None:
    return None if kwargs is None else build(AUGMENTS, kwargs, "augmentation", "AugmentPipe")


def build_optimizer(kwargs: Kwargs, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """Adam on CPUs is torch's fused one, a single pass over memory, with other last digits; torch's default if all ops
    are to be the published code's."""
    name, rest = split(kwargs, "optimizer", "Adam")
    parameters = list(parameters)
    own = name in ("Adam", "AdamW") and not {"fused", "foreach", "differentiable"} & rest.keys()
    if own and requested()[""] != "reference" and all(p.device.type == "cpu" for p in parameters):
        rest["fused"] = True
    return build(OPTIMIZERS, {"class_name": name, **rest}, "optimizer", "Adam", parameters)


def try_optimizer(kwargs: Kwargs, device: torch.device) -> set[str]:
    """Names of the moments that it keeps of each weight. UserError for settings with which it cannot take a step: many
    it only reads then."""
    weight = torch.zeros(1, device=device, requires_grad=True)
    optimizer = build_optimizer(kwargs, [weight])
    weight.grad = torch.zeros_like(weight)
    with as_user_error("optimizer"):
        optimizer.step()
    return {*optimizer.state[weight]}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], kwargs: Kwargs) -> None:
    """Moments as stored; settings are those of this run, `kwargs`, as the learning rate is. ValueError for moments that
    this optimizer does not keep, or not these alone."""
    groups = [*zip(state["param_groups"], optimizer.param_groups, strict=True)]
    stored = {name for moments in state["state"].values() for name in moments}
    own = try_optimizer(kwargs, groups[0][1]["params"][0].device)
    if stored and stored != own:
        stored_names, own_names = (", ".join(sorted(names)) or "none" for names in (stored, own))
        raise ValueError(f"its moments are {stored_names}; those of the optimizer of the options are {own_names}")
    kept = [{**settings, "params": group["params"]} for group, settings in groups]
    optimizer.load_state_dict({**state, "param_groups": kept})


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
