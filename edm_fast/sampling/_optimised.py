"""Noise levels that minimise a bound on the error, whatever the network: Xue et al. 2024 (arXiv 2402.17376)."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments

MAX_STEPS = 32  # takes a second or two; other grids are as good with more
LEAST_GAP = 1 / 3  # of the mean step in lambda
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
TINY = 1e-30


def bound_terms(lambdas: np.ndarray, power: int, truncate: int) -> tuple[np.ndarray, np.ndarray]:
    """(smooth part (...), signed weights c (..., N)) of the bound, smooth + sum_m |c_m|, at lambdas (..., N + 1).

    Holds for complex lambdas too, whose imaginary parts give exact derivatives.
    """
    N = lambdas.shape[-1] - 1
    sigma = np.exp(-lambdas)
    e = sigma if power == 1 else sigma**2 / np.sqrt(1 + sigma**2)
    half = np.diff(lambdas)[..., None] / 2
    u = lambdas[..., :-1, None] + half * (NODES + 1)
    measure = half * WEIGHTS * np.exp(u)
    steps = np.arange(N)
    points = 1 + np.minimum(2, np.minimum(steps, steps[::-1]))
    eJ = np.zeros((*lambdas.shape[:-1], N, 3), lambdas.dtype)
    for n in (1, 2, 3):
        s = steps[points == n]
        for k in range(n):
            basis, node = measure[..., s, :], lambdas[..., s - k]
            for other in (lambdas[..., s - j] for j in range(n) if j != k):
                basis = basis * (u[..., s, :] - other[..., None]) / (node - other)[..., None]
            eJ[..., s, k] = e[..., s - k] * basis.sum(-1)
    early, late = (points > 1) & (steps < truncate), (points > 1) & (steps >= truncate)
    smooth = eJ[..., points == 1, 0].sum(-1) + np.sqrt((eJ[..., early, :] ** 2).sum(-1)).sum(-1)
    c = np.zeros(eJ.shape[:-1], lambdas.dtype)
    for k in range(min(3, N)):
        c[..., : N - k] += np.where(late, eJ[..., k], 0)[..., k:]
    return smooth, c


def error_bound(lambdas: Any, power: int = 1, truncate: int | None = None) -> float:
    """The bound of `optimised_levels` at lambdas (N + 1,) = -ln sigma, rising."""
    lambdas = np.asarray(lambdas, dtype=np.float64)
    smooth, c = bound_terms(lambdas, power, len(lambdas) if truncate is None else truncate)
    return float(smooth + np.abs(c).sum())


def optimised_levels(
    steps: int, lo: float = 0.002, hi: float = 80, power: int = 1, truncate: int | None = None
) -> list[float]:
    """steps + 1 noise levels sigma from hi down to lo, for `edm_fast.sample(levels=...)`. Xue et al. 2024, Sec. 3.

    With lambda = -ln sigma and J_{s,k} = int e^u l_k(u) du over step s, l_k the Lagrange basis on lambda_{s-k} (three
    points, fewer at both ends), they minimise a bound on the error of x_N / sigma_N: the sum over one-point steps of
    e_s J_{s,0}, plus for the other steps s < truncate sqrt(sum_k (e_{s-k} J_{s,k})^2), plus for the rest, where errors
    of one D cancel between steps, sum_m |sum_{s-k=m} e_m J_{s,k}|. The error of D is e = sigma for power 1 (pixels),
    sigma^2 / sqrt(1 + sigma^2) for power 2 (latents).

    truncate: None for all steps. The published rule is 3 up to 7 steps and 0 above; with 0 the bound keeps falling as
    levels crowd together, where samples are poor, so each step in lambda is at least a third of the mean one.
    At most 32 steps. UserError for bad options.
    """
    N = _arguments.steps(steps, "steps")
    lo, hi = _arguments.positive("lo", lo), _arguments.positive("hi", hi)
    if N > MAX_STEPS:
        raise UserError(f"optimised levels for {N} steps; expected at most {MAX_STEPS}")
    if lo >= hi or power not in (1, 2):
        raise UserError(f"lo is {lo:g}, hi {hi:g}, power {power}; expected lo < hi, and power 1 or 2")
    truncate = N if truncate is None else min(N, _arguments.steps(truncate + 1, "truncate + 1") - 1)
    return [hi, *_inner_levels(N, lo, hi, power, truncate), lo]


@functools.cache
def _inner_levels(N: int, lo: float, hi: float, power: int, truncate: int) -> list[float]:
    """Minimise smooth + sum_m z_m over lambda_1..lambda_{N-1} and z (N,), z_m >= |c_m|: smooth, unlike the bound."""
    import scipy.optimize  # slow to import

    start = np.linspace(-math.log(hi), -math.log(lo), N + 1)
    free, gaps = N - 1, np.diff(np.eye(N + 1), axis=0)
    fixed = gaps[:, [0, -1]] @ start[[0, -1]] - LEAST_GAP * (start[1] - start[0])
    rising = np.hstack([gaps[:, 1:-1], np.zeros((N, N))])
    shifts = 1j * TINY * np.eye(N + 1)[1:-1]

    @functools.lru_cache(maxsize=2)
    def terms(inner: bytes) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """smooth, c, and their derivatives (N - 1,) and (N, N - 1)."""
        lambdas = np.concatenate([start[:1], np.frombuffer(inner), start[-1:]])
        smooth, c = bound_terms(lambdas + shifts, power, truncate)
        return smooth[0].real, c[0].real, smooth.imag / TINY, c.imag.T / TINY

    def at(v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        return terms(v[:free].tobytes())

    if free == 0:
        return []
    one, best = np.eye(N), start
    room = (LEAST_GAP - 1e-6) * (start[1] - start[0])
    constraints = [
        {
            "type": "ineq",
            "fun": lambda v: np.concatenate([v[free:] - at(v)[1], v[free:] + at(v)[1]]),
            "jac": lambda v: np.block([[-at(v)[3], one], [at(v)[3], one]]),
        },
        {"type": "ineq", "fun": lambda v: rising @ v + fixed, "jac": lambda v: rising},
    ]
    karras = np.linspace(hi ** (1 / 7), lo ** (1 / 7), N + 1)
    for guess in (start[1:-1], -7 * np.log(karras[1:-1])):
        with np.errstate(all="ignore"):  # a search that leaves the region is dropped
            found = scipy.optimize.minimize(
                lambda v: at(v)[0] + v[free:].sum(),
                np.concatenate([guess, np.abs(at(guess)[1])]),
                jac=lambda v: np.concatenate([at(v)[2], np.ones(N)]),
                method="SLSQP",
                bounds=[*[(start[0], start[-1])] * free, *[(0, None)] * N],
                constraints=constraints,
                options={"maxiter": 300, "ftol": 1e-7},
            )
        lambdas = np.concatenate([start[:1], found.x[:free], start[-1:]])
        if np.diff(lambdas).min() >= room and (
            error_bound(lambdas, power, truncate) < error_bound(best, power, truncate)
        ):
            best = lambdas
    return np.exp(-best[1:-1]).tolist()
