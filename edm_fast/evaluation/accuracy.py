"""How far images are from the solution of the probability-flow ODE that starts where they do, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import deal_seeds, edm_sampler, sample_seeds

STEPS = 256  # Heun's, of a solution that counts as converged


def draw(net: Any, sampler: Callable[..., Tensor], seeds: Sequence[int], batch: int = 64, **options: Any) -> Tensor:
    """The images (N, C, R, R) float64 of seeds, at most `batch` at a time; options: see `sample_seeds`."""
    return torch.cat([sample_seeds(net, sampler, part, **options) for part in deal_seeds(seeds, batch) if part])


def converged(net: Any, seeds: Sequence[int], steps: int = STEPS, **options: Any) -> Tensor:
    """The ODE's solution from each seed's latents, by so many Heun steps; options as in `draw`."""
    return draw(net, edm_sampler, seeds, num_steps=steps, **options)


def error_levels(images: Tensor, truth: Tensor) -> Tensor:
    """(N,): the root-mean-square difference of each image (C, R, R) in levels of 255, both clipped to [-1, 1].

    UserError for images that are not finite.
    """
    if not images.isfinite().all():
        raise UserError("the images are not finite")
    difference = images.double().clip(-1, 1) - truth.double().clip(-1, 1)
    return difference.square().flatten(1).mean(1).sqrt() * 127.5
