"""The inputs of one evaluation: what makes them a batch, and the parts it is evaluated in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from edm_fast.plan._pool import Shapes

Inputs = Mapping[str, torch.Tensor]  # of a raw network, by name
MANY = 2**30  # images: all that there are
DIMENSIONS = {"x": 4, "noise_labels": 1, "class_labels": 2, "augment_labels": 2}


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
    size = -(-n // -(-n // most))
    parts = [slice(start, start + size) for start in range(0, n, size)]
    results = [run({name: t if len(t) == 1 else t[part] for name, t in inputs.items()}) for part in parts]
    return results[0] if len(results) == 1 else torch.cat(results)
