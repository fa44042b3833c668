"""Noise levels that minimise a bound on the error, whatever the network: Xue et al. 2024 (arXiv 2402.17376)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def error_bound(lambdas: Sequence[float], power: int = 1, truncate: int | None = None) -> float:
    """The sum over levels of (error of D there) x (its total weight in x_N / sigma_N); lambdas (N + 1,) = -ln sigma.

    The error of D is sigma for power 1 (pixels), sigma^2 / sqrt(1 + sigma^2) for 2. Weights of the first `truncate`
    steps (None: 3 up to N = 7, else 0) do not cancel one another.
    """
    points = np.asarray(lambdas, dtype=np.float64)
    N = len(points) - 1
    truncate = (3 if N <= 7 else 0) if truncate is None else truncate
    sigma = np.exp(-points)
    e = sigma if power == 1 else sigma**2 / np.sqrt(1 + sigma**2)
    total, sums = 0.0, np.zeros(N)
    for s in range(N):
        n = 1 if s in (0, N - 1) else 2 if s in (1, N - 2) else 3
        nodes = points[s - np.arange(n)]
        half = (points[s + 1] - points[s]) / 2
        u = points[s] + half * (NODES + 1)
        J = np.empty(n)
        for k in range(n):
            others = np.delete(nodes, k)
            basis = np.prod((u[:, None] - others) / (nodes[k] - others), axis=1)
            J[k] = half * (WEIGHTS * np.exp(u) * basis).sum()
        weights = e[s - np.arange(n)] * J
        if n == 1:
            total += abs(weights[0])
        elif s < truncate:
            total += math.sqrt((weights**2).sum())
        else:
            sums[s - np.arange(n)] += weights
    return float(total + np.abs(sums).sum())


def optimised(steps: int, lo: float = 0.002, hi: float = 80, power: int = 1, truncate: int | None = None) -> list[float]:
    """steps + 1 levels from hi down to lo, for `edm_fast.sample(levels=...)`; takes seconds."""
    import scipy.optimize  # slow to import

    N = _arguments.steps(steps, "steps")
    lo, hi = _arguments.positive("lo", lo), _arguments.positive("hi", hi)
    if lo >= hi or power not in (1, 2):
        raise UserError(f"lo is {lo:g}, hi {hi:g}, power {power}; expected lo < hi, and power 1 or 2")
    start = np.linspace(-math.log(hi), -math.log(lo), N + 1)
    if N == 1:
        return [hi, lo]

    def whole(inner: np.ndarray) -> np.ndarray:
        return np.concatenate([start[:1], inner, start[-1:]])

    differences = np.diff(np.eye(N + 1), axis=0)
    least = 1e-3 * (start[1] - start[0])
    fixed = differences[:, [0, -1]] @ start[[0, -1]]
    rising = scipy.optimize.LinearConstraint(differences[:, 1:-1], least - fixed, np.inf, keep_feasible=True)
    found = scipy.optimize.minimize(
        lambda inner: error_bound(whole(inner), power, truncate),
        start[1:-1],
        method="trust-constr",
        constraints=[rising],
        options={"maxiter": 2000},
    )
    return [hi, *np.exp(-found.x).tolist(), lo]
