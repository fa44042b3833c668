"""Samplers, per-image random streams, and pictures of the results."""

from edm_fast.sampling.ablation import ablation_sampler
from edm_fast.sampling.edm import edm_sampler
from edm_fast.sampling.random import StackedRandomGenerator

__all__ = ["StackedRandomGenerator", "ablation_sampler", "edm_sampler"]
