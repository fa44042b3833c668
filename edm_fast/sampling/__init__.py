"""Samplers and solvers, per-image random streams, and pictures of the results."""

from edm_fast.sampling._arguments import check_network
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling._optimised import optimised_levels
from edm_fast.sampling.images import arrange, save_grid, save_png, to_uint8
from edm_fast.sampling.loop import Solver, StopSampling, run
from edm_fast.sampling.seeds import (
    StackedRandomGenerator,
    check_class,
    deal_missing,
    deal_seeds,
    sample_seeds,
    seed_inputs,
)
from edm_fast.sampling.solvers._file import load_solver, save_solver
from edm_fast.sampling.solvers._generate import SeedSampler, generate
from edm_fast.sampling.solvers._gits import gits
from edm_fast.sampling.solvers._invert import invert, log_likelihood
from edm_fast.sampling.solvers._sample import sample
from edm_fast.sampling.solvers._tuned import SUFFIX, TunedSampler, load_sampler, save_sampler
from edm_fast.sampling.solvers.ablation import ablation_sampler
from edm_fast.sampling.solvers.edm import edm2_sampler, edm_sampler

__all__ = [
    "SUFFIX",
    "Guidance",
    "SeedSampler",
    "Solver",
    "StackedRandomGenerator",
    "StopSampling",
    "TunedSampler",
    "ablation_sampler",
    "arrange",
    "check_class",
    "check_network",
    "deal_missing",
    "deal_seeds",
    "edm2_sampler",
    "edm_sampler",
    "generate",
    "gits",
    "load_sampler",
    "invert",
    "load_solver",
    "log_likelihood",
    "optimised_levels",
    "run",
    "sample",
    "sample_seeds",
    "seed_inputs",
    "save_grid",
    "save_png",
    "save_sampler",
    "save_solver",
    "to_uint8",
]
