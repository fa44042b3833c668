"""Samplers, per-image random streams, and pictures of the results."""

from edm_fast.sampling.ablation import ablation_sampler, ablation_steps
from edm_fast.sampling.edm import edm_sampler, edm_steps
from edm_fast.sampling.images import arrange, save_grid, save_png, to_uint8
from edm_fast.sampling.seeds import StackedRandomGenerator, check_class, deal_missing, deal_seeds, sample_seeds

__all__ = [
    "StackedRandomGenerator",
    "ablation_sampler",
    "ablation_steps",
    "arrange",
    "check_class",
    "deal_missing",
    "deal_seeds",
    "edm_sampler",
    "edm_steps",
    "sample_seeds",
    "save_grid",
    "save_png",
    "to_uint8",
]
