"""tune: the cheapest sampler of a network whose images are within a bound of the converged solution."""

from edm_fast.evaluation.tuning._search import (
    STATISTICS,
    Errors,
    Found,
    Measured,
    Search,
    Wanted,
    prepared,
    save_pairs,
    seconds,
    tuned_sampler,
    upper,
)
from edm_fast.evaluation.tuning._trials import FITTED, SOLVERS
from edm_fast.evaluation.tuning._truth import BATCH, COMPARED, STORED, Truth

__all__ = [
    "BATCH",
    "COMPARED",
    "FITTED",
    "SOLVERS",
    "STATISTICS",
    "STORED",
    "Errors",
    "Found",
    "Measured",
    "Search",
    "Wanted",
    "Truth",
    "prepared",
    "save_pairs",
    "seconds",
    "tuned_sampler",
    "upper",
]
