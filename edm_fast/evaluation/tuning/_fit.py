"""Samplers fitted to a network: levels of GITS and weights by least squares, step by step; then all of them together.

With slopes d as the sampler itself meets them, the weights of a step minimise the sum over images of
||x_i + sum_k w_k d_{i-k} - X(sigma_{i+1})||^2, X being the true trajectory: x_i + sum_k w_k d_{i-k} comes as near to it
as the last few slopes allow, and later steps mend what is left. A run of the sampler is all it costs.

Then Gauss-Newton steps on all levels and weights minimise the mean RMS difference of the final images from the truth,
the sum of squares with each image weighted by 1 / its error. A derivative costs the rest of a run from where the number
first matters.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edm_fast.evaluation.accuracy import error_levels
from edm_fast.sampling import run, sample, seed_inputs
from edm_fast.sampling.solvers._gits import cheapest_jumps, jump_costs, trajectories

TEACHER: dict[str, Any] = {"solver": "ipndm", "order": 4, "num_steps": 120, "ends": "denoised"}
ORDER = 4  # slopes in a step; more of them change little
DIFFERENCE = 1e-2  # of logarithms of levels, and of weights in those of a step: far above the rounding of float32
DAMPINGS = (1e-4, 1e-2, 1.0)
MOST = 0.3  # change of the logarithm of a level at once
IMPROVEMENTS, ENOUGH = 4, 0.93  # at most so many, while each leaves less than this part of the error
DISCOUNT, STEP, LEAST_STEP = 1.05, 0.04, 0.01  # of GITS: where the search begins and ends


class Fitted(NamedTuple):
    levels: list[float]
    weights: list[list[float]]
    error: float  # mean RMS difference from the truth in levels of 255
    median: float

    def moved(self, logs: dict[int, float], weights: dict[tuple[int, int], float]) -> Fitted:
        """With these changes of the logarithms of levels and of weights."""
        levels = [sigma * math.exp(min(max(logs.get(i, 0.0), -MOST), MOST)) for i, sigma in enumerate(self.levels)]
        rows = [[w + weights.get((i, k), 0.0) for k, w in enumerate(row)] for i, row in enumerate(self.weights)]
        return self._replace(levels=levels, weights=rows)


class Known:
    """A denoiser that replays the first evaluations of an earlier run and keeps all of its own."""

    def __init__(self, net: Any, known: Sequence[Tensor] = ()) -> None:
        self.net, self.known = net, known
        self.sigma_min, self.sigma_max, self.round_sigma = net.sigma_min, net.sigma_max, net.round_sigma
        self.found: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        i = len(self.found)
        self.found.append(self.known[i] if i < len(self.known) else self.net(x, sigma, labels).double())
        return self.found[-1]


class Fits:
    """Fitted samplers of a network, on seeds whose trajectories are those of a teacher of 121 evaluations."""

    def __init__(self, net: Any, seeds: Sequence[int]) -> None:
        self.net, self.seeds = net, list(seeds)
        self._discount, self._width = DISCOUNT, STEP

    @functools.cached_property
    def _start(self) -> tuple[Tensor, Tensor | None]:
        """Latents and labels of the seeds."""
        return seed_inputs(self.net, self.seeds, device=next(self.net.parameters()).device)[:2]

    @functools.cached_property
    def _teacher(self) -> tuple[list[float], Tensor, Tensor]:
        """Levels (T,) down to 0, states (T, N, C, R, R), and the costs of jumps (T, T). Chen et al. 2024 (GITS)."""
        levels, states, slopes = trajectories(self.net, *self._start, **TEACHER)
        return levels, states, jump_costs(levels, states, slopes)

    @property
    def truth(self) -> Tensor:
        """(N, C, R, R): where the teacher's trajectories end."""
        return self._teacher[1][-1]

    def truth_of(self, seeds: Sequence[int]) -> Tensor:
        return self.truth[[self.seeds.index(seed) for seed in seeds]]

    def levels(self, jumps: int, discount: float) -> list[int]:
        """Indices of the teacher's levels, by GITS."""
        return cheapest_jumps(self._teacher[2], jumps, discount)

    def sigmas(self, indices: Sequence[int]) -> list[float]:
        return [self._teacher[0][i] for i in indices]

    def fit(self, indices: Sequence[int]) -> Fitted:
        """Steps between these levels of the teacher."""
        latents, labels = self._start
        targets = [self._teacher[1][i] for i in indices[1:]]
        sigmas = self.sigmas(indices)
        x = latents.to(torch.float64) * sigmas[0]
        history: list[Tensor] = []
        weights: list[list[float]] = []

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
        return self._with_error(Fitted(sigmas, weights, math.nan, math.nan), x)

    def _with_error(self, fitted: Fitted, images: Tensor) -> Fitted:
        errors = error_levels(images, self.truth)
        return fitted._replace(error=errors.mean().item(), median=errors.median().item())

    def run(self, fitted: Fitted, known: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """The images (N, C, R, R), and the D of each step; the first of them as known."""
        net = Known(self.net, known)
        with torch.no_grad():
            x = sample(net, *self._start, solver="listed", levels=fitted.levels, weights=fitted.weights)
        return x, net.found

    def derivatives(self, fitted: Fitted, x: Tensor, known: list[Tensor]) -> Tensor:
        """(N, P, n): of the pixels in levels of 255 by the logarithms of the inner levels, then by the weights."""
        found = []
        for i in range(1, len(fitted.weights)):
            moved = fitted.moved({i: DIFFERENCE}, {})
            found.append((_pixels(self.run(moved, known[:i])[0]) - _pixels(x)) / DIFFERENCE)
        for i, row in enumerate(fitted.weights):
            h = DIFFERENCE * (fitted.levels[i] - fitted.levels[i + 1])
            for k in range(len(row)):
                moved = fitted.moved({}, {(i, k): h})
                found.append((_pixels(self.run(moved, known[: i + 1])[0]) - _pixels(x)) / h)
        return torch.stack(found, dim=-1)

    def improved(self, fitted: Fitted) -> Fitted:
        """The sampler after one Gauss-Newton step, damped until it comes nearer to the truth; or as it is."""
        x, known = self.run(fitted)
        errors = error_levels(x, self.truth)
        weight = 1 / errors.clamp(min=0.1 * errors.mean().item())
        J, r = self.derivatives(fitted, x, known), _pixels(self.truth) - _pixels(x)
        A = torch.einsum("npk,npl,n->kl", J, J, weight)
        b = torch.einsum("npk,np,n->k", J, r, weight)
        places = [(i, k) for i, row in enumerate(fitted.weights) for k in range(len(row))]
        for damping in DAMPINGS:
            change = torch.linalg.solve(A + damping * A.diagonal().diag(), b).tolist()
            inner = len(fitted.weights) - 1
            moved = fitted.moved(dict(enumerate(change[:inner], 1)), dict(zip(places, change[inner:])))
            if all(a > b for a, b in itertools.pairwise(moved.levels)):
                moved = self._with_error(moved, self.run(moved)[0])
                if moved.error < fitted.error:
                    return moved
        return fitted

    def best(self, steps: int, worth: float = math.inf) -> Fitted:
        """Levels by the discount of GITS with which these steps come nearest to the truth; improved where the median
        of the errors is at most `worth`."""
        found: dict[tuple[int, ...], Fitted] = {}

        def error(discount: float) -> float:
            indices = tuple(self.levels(steps, discount))
            if indices not in found:
                found[indices] = self.fit(indices)
            return found[indices].error

        centre, width = self._discount, self._width
        while width >= LEAST_STEP:
            nearest = min((centre, centre - width, centre + width), key=error)
            width = width if nearest != centre else width / 2
            centre = nearest
        self._discount, self._width = centre, 2 * LEAST_STEP  # other numbers of steps have others near to it
        best = min(found.values(), key=lambda fitted: fitted.error)
        for _ in range(IMPROVEMENTS if best.median <= worth else 0):
            before, best = best.error, self.improved(best)
            if best.error > ENOUGH * before:
                break
        return best


def _pixels(x: Tensor) -> Tensor:
    """(N, C R R) in levels of 255, cut as images are."""
    return x.flatten(1).clamp(-1, 1) * 127.5
