"""A solver given as numbers, such as a learned one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop


def listed(levels: Sequence[float], *, weights: Sequence[Sequence[float]] | None = None) -> loop.Solver:
    """x' = x + sum_k w_k d_{i-k}, d = (x - D)/sigma.

    weights: for each step its w_k, the newest slope first, as many as wanted of those there are; None: Euler's.
    """
    if weights is None:
        weights = [[sigma_next - sigma] for sigma, sigma_next in zip(levels, levels[1:])]
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != len(levels) - 1:
        count = len(weights) if isinstance(weights, Sequence) else type(weights).__name__
        raise UserError(f"weights of {count} steps; expected a list for each of {len(levels) - 1}")
    steps = []
    for i, (sigma, row) in enumerate(zip(levels, weights)):
        if not isinstance(row, Sequence) or isinstance(row, str) or not 1 <= len(row) <= i + 1:
            raise UserError(f"weights of step {i} are {str(row)[:80]}; expected a list of 1 to {i + 1} numbers")
        w = [_arguments.number(f"weight {k} of step {i}", value) for k, value in enumerate(row)]
        if not all(map(math.isfinite, w)):
            raise UserError(f"weights of step {i} are {str(row)[:80]}; expected finite numbers")
        steps.append(loop.step(loop.slope(sigma, w, t=sigma)))
    return loop.Solver(levels, steps)


SOLVERS = {"listed": listed}
