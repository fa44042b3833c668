"""The inputs of one evaluation: what makes them a batch, and the parts it is evaluated in."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edm_fast.networks import SongUNet
from edm_fast.plan._pool import Shapes

Inputs = Mapping[str, torch.Tensor]  # of a raw network, by name
MANY = 2**30  # images: all that there are
DIMENSIONS = {"x": 4, "noise_labels": 1, "class_labels": 2, "augment_labels": 2}


def signature(model: torch.nn.Module) -> inspect.Signature:
    """The inputs by name; those of every raw network where a forward passes on whatever it is given."""
    own = inspect.signature(model.forward)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in own.parameters.values()):
        return inspect.signature(functools.partial(SongUNet.forward, model))  # type: ignore[arg-type]
    return own


def by_name(signature: inspect.Signature) -> Callable[[Sequence[Any], Mapping[str, Any]], Mapping[str, Any]]:
    """What gives the arguments of a call by name. Those that fit are told without inspect, which would take as long as
    a layer of a small network."""
    names = signature.parameters.keys()
    required = {p.name for p in signature.parameters.values() if p.default is p.empty}
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values())

    def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        found = {**dict(zip(names, args)), **kwargs}
        fits = plain and len(found) == len(args) + len(kwargs) and required <= found.keys() <= names
        return found if fits else signature.bind(*args, **kwargs).arguments

    return arguments


def shape_fault(inputs: Inputs) -> str | None:
    """Why these cannot be the inputs of one batch, or None."""
    for name, tensor in inputs.items():
        if not isinstance(tensor, torch.Tensor):
            return f"{name} is of class {type(tensor).__name__}; expected a tensor"
        if tensor.ndim != DIMENSIONS.get(name, max(tensor.ndim, 1)):
            return f"{name} has shape {tuple(tensor.shape)}; expected {DIMENSIONS.get(name, 1)} dimensions"
    if "x" not in inputs:
        return "there is no x; expected images (N, C, H, W)"
    n = len(inputs["x"])
    for name, tensor in inputs.items():
        if len(tensor) not in (1, n):
            return f"{name} has {len(tensor)} rows; expected {n}, one for each image, or 1 for all of them"
    return None


def shapes_of(inputs: Inputs) -> Shapes:
    return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(inputs.items()))


def shapes_of_one(inputs: Inputs) -> Shapes:
    """Those of a single image."""
    return tuple((name, (1, *shape[1:])) for name, shape in shapes_of(inputs))


def in_parts(run: Callable[[Inputs], torch.Tensor], inputs: Inputs, most: int) -> torch.Tensor:
    """run(inputs), in parts of at most `most` images and of about the same size."""
    n = len(inputs["x"])
    if n <= most:
        return run(inputs)
    size = -(-n // -(-n // most))
    parts = [slice(start, start + size) for start in range(0, n, size)]
    return torch.cat([run({name: t if len(t) == 1 else t[part] for name, t in inputs.items()}) for part in parts])
