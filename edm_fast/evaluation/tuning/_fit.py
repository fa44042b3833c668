"""Samplers fitted to a network: levels of GITS, and weights by least squares, step by step.

With slopes d as the sampler itself meets them, the weights of a step minimise the sum over images of
||x_i + sum_k w_k d_{i-k} - X(sigma_{i+1})||^2, X being the true trajectory: x_i + sum_k w_k d_{i-k} comes as near to it
as the last few slopes allow, and later steps mend what is left. A run of the sampler is all it costs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edm_fast.evaluation.accuracy import error_levels
from edm_fast.sampling import run, sample, sample_seeds
from edm_fast.sampling.solvers._gits import cheapest_jumps, jump_costs, trajectories

TEACHER = {"solver": "ipndm", "order": 4, "num_steps": 120, "ends": "sigma_min"}
ORDER = 4  # slopes in a step; more of them change little
DISCOUNT, STEP, LEAST_STEP = 1.05, 0.04, 0.01  # of GITS: where the search begins and ends


class Fitted(NamedTuple):
    levels: list[float]
    weights: list[list[float]]
    error: float  # mean RMS difference from the truth in levels of 255


class Fits:
    """Fitted samplers of a network. truth (N, C, R, R): the true images of the seeds."""

    def __init__(self, net: Any, seeds: Sequence[int], truth: Tensor) -> None:
        self.net, self.seeds, self.truth = net, seeds, truth
        self._found: dict[tuple[int, ...], Fitted] = {}

    @functools.cached_property
    def _start(self) -> tuple[Tensor, Tensor | None]:
        """Latents and labels of the seeds."""
        found: list[Any] = []

        def keep(net: Any, latents: Tensor, labels: Tensor | None, randn_like: Any) -> Tensor:
            found.append((latents, labels))
            return latents

        sample_seeds(self.net, keep, self.seeds, device=next(self.net.parameters()).device)
        return found[0]

    @functools.cached_property
    def _teacher(self) -> tuple[list[float], Tensor]:
        """Levels (T,) and states (T, N, C, R, R) of trajectories that count as true."""
        levels, states, slopes = trajectories(self.net, *self._start, **TEACHER)
        self._costs = jump_costs(levels, states, slopes)
        return levels, states

    def levels(self, jumps: int, discount: float) -> list[int]:
        """Indices of the teacher's levels, by GITS (Chen et al. 2024)."""
        _ = self._teacher
        return cheapest_jumps(self._costs, jumps, discount)

    def sigmas(self, indices: Sequence[int]) -> list[float]:
        """Noise levels at these indices, the last one replaced by 0."""
        return [*(self._teacher[0][i] for i in indices[:-1]), 0.0]

    def fit(self, indices: Sequence[int]) -> Fitted:
        """Steps between these levels of the teacher, the last of them to level 0."""
        _, states = self._teacher
        latents, labels = self._start
        targets = [*(states[i] for i in indices[1:-1]), self.truth.to(states)]
        sigmas = self.sigmas(indices)
        x, history, weights = latents.to(torch.float64) * sigmas[0], [], []

        def step(i: int, sigma: float, reached: Tensor, denoised: Tensor) -> Tensor:
            nonlocal x
            history.insert(0, (x - denoised) / sigmas[i])
            del history[ORDER:]
            slopes = torch.stack([d.flatten() for d in history], dim=1)
            wanted = (targets[i] - x).flatten()
            w = torch.linalg.lstsq(slopes, wanted[:, None]).solution[:, 0].tolist()
            weights.append(w)
            x = x + sum(w_k * d for w_k, d in zip(w, history))
            return x

        euler = sample.solver(self.net, latents, solver="euler", levels=sigmas)  # type: ignore[attr-defined]
        with torch.no_grad():
            run(self.net, latents, euler, labels, callback=step)
        return Fitted(sigmas, weights, error_levels(x, self.truth.to(x)).mean().item())

    def best(self, steps: int) -> Fitted:
        """Levels by the discount of GITS with which these steps come nearest to the truth."""
        found: dict[tuple[int, ...], Fitted] = {}

        def error(discount: float) -> float:
            indices = tuple(self.levels(steps, discount))
            if indices not in found:
                found[indices] = self.fit(indices)
            return found[indices].error

        centre, width = DISCOUNT, STEP
        while width >= LEAST_STEP:
            nearest = min((centre, centre - width, centre + width), key=error)
            width = width if nearest != centre else width / 2
            centre = nearest
        return min(found.values(), key=lambda fitted: fitted.error)
