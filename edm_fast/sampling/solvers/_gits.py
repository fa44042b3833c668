"""Noise levels found on a network's own trajectories: GITS (Chen et al. 2024, arXiv 2405.11326)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling.solvers._sample import sample

METRICS = ("dev", "l1", "l2")


def trajectories(
    net: Any, latents: Tensor, class_labels: Tensor | None = None, **settings: Any
) -> tuple[list[float], Tensor, Tensor]:
    """(levels (T,), states X (T, N, C, H, W), slopes d (T - 1, N, C, H, W)) of a teacher with one evaluation a step.

    settings: those of `edm_fast.sample`.
    """
    steps = sample.solver(net, latents, class_labels, **settings)  # type: ignore[attr-defined]
    if any(sum(stage.evaluates for stage in step.stages) != 1 for step in steps.steps):
        raise UserError(
            "the teacher evaluates the network more or less than once a step; expected a solver such as ipndm"
        )
    states, slopes = [latents.to(torch.float64) * steps.levels[0]], []

    def watch(i: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        slopes.append((states[-1] - denoised) / steps.levels[i])
        states.append(x)

    with torch.no_grad():
        loop.run(net, latents, steps, class_labels, guidance=settings.get("guidance"), callback=watch)
    return [*steps.levels], torch.stack(states), torch.stack(slopes)


def jump_costs(levels: Sequence[float], states: Tensor, slopes: Tensor, metric: str = "dev") -> Tensor:
    """(T, T) float64 on the host: what one Euler jump y from X_i to level j > i costs, the mean over images; else 0.

    l1, l2: the norm of y - X_j. dev: how much farther y is than X_j from the straight line through the ends of the
    trajectory; may be negative.
    """
    if metric not in METRICS:
        raise UserError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    X, d = states.flatten(2), slopes.flatten(2)  # (T, N, n)
    T = len(levels)
    t = torch.tensor(levels, dtype=torch.float64, device=X.device)
    along = (X[-1] - X[0]) / (X[-1] - X[0]).norm(dim=1, keepdim=True)

    def deviation(v: Tensor) -> Tensor:
        offset = v - X[0]
        return (offset - (offset * along).sum(-1, keepdim=True) * along).norm(dim=-1)

    own = deviation(X)
    own[-1] = 0
    costs = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T - 1):
        y = X[i] + (t[i + 1 :] - t[i])[:, None, None] * d[i]
        if metric == "dev":
            cost = deviation(y) - own[i + 1 :]
        else:
            cost = (y - X[i + 1 :]).norm(p=int(metric[1]), dim=-1)
        costs[i, i + 1 :] = cost.mean(1).cpu()
    return costs


def cheapest_jumps(costs: Tensor, jumps: int, discount: float = 1.15) -> list[int]:
    """Indices (jumps + 1,) from the first level to the last, of least sum of discount^m times the m-th jump's cost."""
    T, jumps = len(costs), _arguments.steps(jumps, "jumps")
    if jumps >= T:
        raise UserError(f"jumps is {jumps} with {T} levels; expected at most {T - 1}")
    least = costs[:, -1].tolist()  # from each level, with one jump left
    least[-1] = math.inf
    choices = []
    table = costs.tolist()
    for _ in range(jumps - 1):
        found, chosen = [], []
        for j in range(T):
            totals = [(table[j][i] + discount * least[i], i) for i in range(j + 1, T - 1)]
            best = min(totals, default=(math.inf, T - 1))
            found.append(best[0])
            chosen.append(best[1])
        least = found
        choices.append(chosen)
    path = [0]
    for chosen in reversed(choices):
        path.append(chosen[path[-1]])
    return [*path, T - 1]


def gits(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    steps: int,
    metric: str = "dev",
    discount: float = 1.15,
    teacher_levels: int = 61,
    batch: int = 64,
    **settings: Any,
) -> list[float]:
    """steps + 1 levels down to the lowest of the network, for `edm_fast.sample(levels=...)`.

    latents (N, C, H, W) ~ N(0, I): the warm-up images, published 256, in rounds of `batch`. The teacher is iPNDM-4 on
    Karras' grid; settings (sigma_min, sigma_max, rho, and the like) are those of `edm_fast.sample`.
    """
    settings = {"solver": "ipndm", "order": 4, "num_steps": teacher_levels - 1, "ends": "sigma_min", **settings}
    total, levels = torch.zeros(teacher_levels, teacher_levels, dtype=torch.float64), [0.0]
    _arguments.check_latents(latents)
    if not len(latents):
        raise UserError("latents is empty; expected warm-up images, a few dozen or more")
    parts = range(0, len(latents), _arguments.steps(batch, "batch"))
    for start in parts:
        labels = class_labels if class_labels is None else class_labels[start : start + batch]
        levels, states, slopes = trajectories(net, latents[start : start + batch], labels, **settings)
        total += jump_costs(levels, states, slopes, metric) / len(parts)
    return [levels[i] for i in cheapest_jumps(total, steps, discount)]
