"""A solver given as numbers, such as a learned one: the short form of solver files, see __init__.py."""

from __future__ import annotations

from collections.abc import Sequence

from edm_fast.sampling import loop
from edm_fast.sampling.solvers._file import short_form


def listed(levels: Sequence[float], *, weights: Sequence[Sequence[float]] | None = None) -> loop.Solver:
    """x' = x + sum_k w_k d_{i-k}, d = (x - D)/sigma.

    weights: for each step its w_k, the newest first, at most as many as there are by then; None: those of Euler's
    method.
    """
    if weights is None:
        weights = [[sigma_next - sigma] for sigma, sigma_next in zip(levels, levels[1:])]
    return loop.Solver(levels, short_form({"keeps": "slope", "weights": weights}, levels))


SOLVERS = {"listed": listed}
