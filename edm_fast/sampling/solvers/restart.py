"""Restart (Xu et al. 2023, 2306.14878, Alg. 2): EDM's Heun sampler that goes back up to a high level a few times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edm_fast.diffusion.schedule import edm_sigmas
from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling.solvers._multistep import checked_choice
from edm_fast.sampling.solvers._noise import checked_amount, noise
from edm_fast.sampling.solvers._runge_kutta import heun_step

Entry = tuple[int, int, float, float]  # n, K, t_min, t_max

_FIVE = ((19.35, 40.79), (1.09, 1.92), (0.59, 1.09), (0.30, 0.59), (0.06, 0.30))


def _five(*counts: tuple[int, int]) -> list[Entry]:
    return [(*count, *interval) for count, interval in zip(counts, _FIVE, strict=True)]


# App. B.2, by data and evaluations. S_noise is 1 for CIFAR-10 and 1.003 for ImageNet-64; restart_gamma 0.05, S_min 0.01
# and S_max 1 for all
PRESETS: dict[str, list[Entry]] = {
    # 18 steps
    "cifar10-43": [(3, 2, 0.14, 0.30)],
    **{f"cifar10-vp-{35 + 4 * K}": [(3, K, 0.06, 0.30)] for K in (2, 5, 10, 20)},
    "imagenet64-67": [(5, 1, *_FIVE[0]), (5, 1, *_FIVE[1]), (5, 1, *_FIVE[2]), (5, 1, *_FIVE[4])],
    "imagenet64-99": _five((3, 1), (4, 1), (4, 4), (4, 1), (4, 4)),
    "imagenet64-165": _five((3, 1), (4, 1), (4, 5), (4, 5), (4, 10)),
    # 20, 14 and 36 steps
    "cifar10-vp-519": [(9, 30, 0.06, 0.20)],
    "imagenet64-39": [(3, 1, *_FIVE[0]), (3, 1, *_FIVE[1]), (3, 1, *_FIVE[4])],
    "imagenet64-203": _five((4, 1), (4, 1), (4, 5), (4, 5), (6, 6)),
    "imagenet64-385": _five((3, 1), (6, 1), (6, 5), (6, 5), (6, 20)),
    "imagenet64-535": _five((6, 1), (6, 1), (7, 6), (7, 6), (7, 25)),
    "imagenet64-623": _five((10, 3), (10, 3), (7, 6), (7, 6), (7, 25)),
}


def restart(
    levels: Sequence[float],
    *,
    restart: str | Mapping[Any, Sequence[float]] | Sequence[Sequence[float]] = "cifar10-43",
    restart_gamma: float = 0,
    restart_rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
) -> loop.Solver:
    """Heun; and for each entry (n, K, t_min, t_max), once the level nearest to t_min is reached, K times: noise up to
    t_max, then n - 1 Heun steps back down the levels of Karras et al. 2022, Eq. 5, with rho = restart_rho.

    restart: entries, or the name of published ones in PRESETS. Of two entries at one level the later wins.
    Each step first raises the noise from sigma to (1 + gamma) sigma if S_min <= sigma <= S_max: gamma is restart_gamma
    inside a restart (0.05 in the published runs, with S_min 0.01 and S_max 1), min(S_churn / N, sqrt(2) - 1) outside.
    One draw a step, used or not, and one for each time that noise is added. A step to 0 is Euler's.
    """
    main = torch.tensor(levels, dtype=torch.float64, device="cpu")
    outside, scale = _arguments.churn(main, len(levels) - 1, S_churn, S_min, S_max, S_noise)
    inside = checked_amount("restart_gamma", restart_gamma)
    rho = _arguments.positive("restart_rho", restart_rho)
    at = {int((main - entry[2]).abs().argmin()): entry for entry in _entries(restart)}
    visited, steps = [levels[0]], []

    def walk(sigmas: Sequence[float], gammas: Sequence[float]) -> None:
        for sigma, sigma_next, gamma in zip(sigmas, sigmas[1:], gammas):
            steps.append(_heun(sigma, sigma_next, gamma, scale))
            visited.append(sigma_next)

    for i, gamma in enumerate(outside[:-1].tolist()):
        walk(levels[i : i + 2], [gamma])
        if i + 1 not in at:
            continue
        n, K, _, t_max = at[i + 1]
        low = levels[i + 1]
        if not t_max > low:
            raise UserError(f"restart goes from level {low:g}, the nearest to t_min, to t_max {t_max:g}; expected up")
        inner = [*edm_sigmas(n, low, t_max, rho).tolist()[:-1], low]
        for _ in range(K):
            steps.append(loop.step(loop.move(**noise(math.sqrt((t_max - low) * (t_max + low)) * scale)), draws=1))
            visited.append(t_max)
            walk(inner, [inside if S_min <= sigma <= S_max else 0.0 for sigma in inner])
    return loop.Solver(visited, steps)


def _heun(sigma: float, sigma_next: float, gamma: float, S_noise: float) -> loop.Step:
    """From (1 + gamma) sigma, with noise up to there."""
    t_hat = (1 + gamma) * sigma
    c = math.sqrt((t_hat - sigma) * (t_hat + sigma)) * S_noise
    churn = [loop.move(**noise(c), rebase=True)] if c != 0 else []
    return loop.step(*churn, *heun_step(t_hat, sigma_next), draws=1)


def _entries(restart: Any) -> list[Entry]:
    if isinstance(restart, str):
        checked_choice("restart", restart, list(PRESETS))
        return PRESETS[restart]
    try:
        rows = [tuple(row) for row in (restart.values() if isinstance(restart, Mapping) else restart)]
        found = [(int(n), int(K), float(t_min), float(t_max)) for n, K, t_min, t_max in rows]
    except (TypeError, ValueError, OverflowError):
        found = [(0, 0, 0.0, 0.0)]
    for n, K, t_min, t_max in found:
        if not (n >= 2 and K >= 1 and 0 <= t_min < t_max < math.inf):
            raise UserError(
                f"restart is {str(restart)[:80]}; expected entries (n, K, t_min, t_max) with n of at least 2, K of at "
                "least 1 and t_min < t_max"
            )
    return found


SOLVERS = {"restart": restart}
