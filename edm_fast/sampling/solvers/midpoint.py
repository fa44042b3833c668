"""The explicit midpoint rule in sigma."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edm_fast.sampling import loop


def midpoint(levels: Sequence[float]) -> loop.Solver:
    """y = x + (h/2) d(x; sigma), x' = x + h d(y; sigma + h/2), h = sigma' - sigma; a step to 0 is Euler's.

    Karras et al. 2022, Alg. 3 with alpha = 1/2, sigma(t) = t, s(t) = 1. Second order.
    """
    steps = []
    for sigma, sigma_next in itertools.pairwise(levels):
        h, middle = sigma_next - sigma, (sigma + sigma_next) / 2
        if sigma_next == 0:
            parts = [loop.slope(sigma, t=sigma, h=h)]
        else:
            parts = [loop.slope(sigma, t=sigma, h=h / 2), loop.slope(middle, t=middle, h=h)]
        steps.append(loop.step(*parts))
    return loop.Solver(levels, steps)


SOLVERS = {"midpoint": midpoint}
