"""SDM: Euler where trajectories are straight, Heun from the first step at which they bend."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import loop
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.solvers._runge_kutta import dx_dsigma, first_order, heun_step


def sdm(levels: Sequence[float], *, switch: int | None = None) -> loop.Solver:
    """Euler in the steps before `switch` and in the last one, Heun between them. SDM, arXiv 2602.12624.

    switch: as `calibrate` finds it once per checkpoint, so that an image depends on its seed alone; None: half of the
    steps.
    """
    count = len(levels) - 1
    if switch is None:
        switch = count // 2
    if isinstance(switch, bool) or not isinstance(switch, int) or switch < 0:
        raise UserError(f"switch is {switch!r}; expected the index of a step, 0 or more")
    steps = []
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        euler = i < switch or i == count - 1
        steps.append(loop.step(*(first_order(dx_dsigma, sigma, sigma_next) if euler else heun_step(sigma, sigma_next))))
    return loop.Solver(levels, steps)


def calibrate(
    net: Any,
    latents: Tensor,
    levels: Sequence[float],
    class_labels: Tensor | None = None,
    *,
    tau: float = 2e-4,
    relative: bool = True,
    guidance: Guidance | None = None,
) -> tuple[int, list[float]]:
    """(switch, curvature of each step up to it) of a warm-up batch, for `sdm` on these levels.

    latents (N, C, H, W) ~ N(0, I); levels as those of `sample.solver(...)`. The curvature of step i is the mean over
    images of ||d_i - d_{i-1}|| / (sigma_{i-1} - sigma_i), `relative` to ||d_{i-1}||; that of step 0 is 0. The switch is
    the first step at which it reaches tau, or the number of steps. Published: tau = 2e-4 on CIFAR-10, 1e-4 on ImageNet
    and AFHQ. Costs as many evaluations as there are curvatures.
    """
    curvature: list[float] = []
    x = latents.to(torch.float64) * levels[0]
    before = None  # the slope of the step before

    def watch(i: int, sigma: float, reached: Tensor, denoised: Tensor) -> None:
        nonlocal x, before
        d = (x - denoised) / levels[i]
        curvature.append(0.0 if before is None else _bend(before, d, levels[i - 1] - levels[i], relative))
        x, before = reached, d
        if curvature[-1] >= tau:
            raise loop.StopSampling

    euler = sdm(levels, switch=len(levels))
    with torch.no_grad():
        loop.run(net, latents, euler, class_labels, guidance=guidance, callback=watch)
    return (len(curvature) - 1 if curvature[-1] >= tau else len(euler.steps)), curvature


def _bend(before: Tensor, d: Tensor, h: float, relative: bool) -> float:
    """The mean over images of how far the slope (N, C, H, W) turns, by the noise level."""
    change = (d - before).flatten(1).norm(dim=1) / h
    if relative:
        change = change / before.flatten(1).norm(dim=1)
    return change.mean().item()


SOLVERS = {"sdm": sdm}
