"""The sampler of the ablations: any solver, discretisation, schedule and scaling. Karras et al. 2022, Alg. 2 and 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edm_fast.diffusion import schedule as grids
from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling.solvers._runge_kutta import first_order, second_order

METHODS = ("euler", "heun")


@loop.sampler
def ablation_sampler(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: loop.RandnLike = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = float("inf"),
    S_noise: float = 1,
) -> loop.Solver:
    """Denoise latents (N, C, H, W) ~ N(0, I) along dx/dt = (sigma'/sigma + s'/s) x - (sigma' s/sigma) D(x/s; sigma).

    Noise levels from `discretization`, sigma(t) from `schedule`, s(t) from `scaling`; "heun" is the second-order family
    with parameter alpha. `randn_like` is called once per step, also when no noise enters. Returns float64, not clipped.
    Bad options raise UserError.
    """
    _arguments.check_network(net)
    _check(solver, discretization, schedule, scaling, alpha, epsilon_s)
    num_steps, rho = _arguments.steps(num_steps), _arguments.positive("rho", rho)
    low, high = grids.default_limits(discretization, epsilon_s)
    lo, hi = _arguments.limits(net, low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max)
    sigmas = {
        "vp": lambda: grids.vp_sigmas(num_steps, lo, hi, epsilon_s),
        "ve": lambda: grids.ve_sigmas(num_steps, lo, hi),
        "iddpm": lambda: grids.iddpm_sigmas(num_steps, lo, hi, C_1, C_2, M),
        "edm": lambda: grids.edm_sigmas(num_steps, lo, hi, rho),
    }[discretization]()  # (N,)
    if len(sigmas) == 0:
        raise UserError(f"no entry of the iddpm table lies between sigma_min {lo:g} and sigma_max {hi:g}")
    process = grids.make_schedule(schedule, *grids.vp_betas(lo, hi, epsilon_s))
    scale = grids.make_scaling(scaling)

    t = process.sigma_inv(loop.round_sigma(net, sigmas))  # (N,)
    level = _one_by_one(process.sigma, t)
    gamma, S_noise = _arguments.churn(level, num_steps, S_churn, S_min, S_max, S_noise)
    t_hat = _one_by_one(process.sigma_inv, loop.round_sigma(net, level + gamma * level))
    sigma_hat = _one_by_one(process.sigma, t_hat)
    # round trips t(sigma(t)) may come out slightly below where they started
    variance = (sigma_hat**2 - level**2).clip(min=0)
    noise = variance.sqrt() * scale.s(sigma_hat) * S_noise
    growth = (scale.s(sigma_hat) / scale.s(level)).tolist() if scaling != "none" else None
    second = None if solver == "euler" else alpha
    steps = _steps(process, scale, second, t_hat.tolist(), [*t[1:].tolist(), 0.0], growth, noise.tolist())
    return loop.Solver([*level.tolist(), 0.0], steps, (level[0] * scale.s(level[0])).item())


def _steps(
    process: grids.Schedule,
    scale: grids.Scaling,
    alpha: float | None,
    starts: list[float],
    ends: list[float],
    growth: list[float] | None,
    noise: list[float],
) -> list[loop.Step]:
    """growth a and noise c: x = a x + c eps before a step. alpha: of Heun's family, None is Euler; into 0 it is Euler.

    growth: None without a scaling.
    """
    inner = [] if alpha is None else [here + alpha * (end - here) for here, end in zip(starts[:-1], ends)]
    at = _slopes(process, scale, growth is not None, [*starts, *inner]).__getitem__
    steps = []
    for i, (here, end, c) in enumerate(zip(starts, ends, noise)):
        a: dict[str, Any] = {} if growth is None else {"a": growth[i]}
        churn = [loop.move(c=c, rebase=True, **a)] if c != 0 or a.get("a", 1) != 1 else []
        if alpha is None or i == len(inner):
            stages = first_order(at, here, end)
        else:
            stages = second_order(at, here, end, alpha, inner[i])
        steps.append(loop.step(*churn, *stages, draws=1))
    return steps


def _one_by_one(function: grids.Function, values: Tensor) -> Tensor:
    """function(values) (N,), computed as the published loop does: torch rounds powers in a vector otherwise."""
    return torch.stack([function(value) for value in values])


def _slopes(
    process: grids.Schedule, scale: grids.Scaling, scaled: bool, times: list[float]
) -> dict[float, dict[str, float]]:
    """By time: d = (sigma'/sigma + s'/s) x - (sigma' s/sigma) D."""
    t = torch.tensor(times, dtype=torch.float64, device="cpu")
    sigma = _one_by_one(process.sigma, t)
    sigma_deriv, s = process.sigma_deriv(t, sigma), scale.s(sigma)
    p, q = sigma_deriv / sigma + scale.s_deriv(sigma, sigma_deriv) / s, sigma_deriv * s / sigma
    columns = {"sigma": sigma, "p": p, "q": q, **({"s": s} if scaled else {})}
    rows = zip(*(column.tolist() for column in columns.values()))
    return {time: dict(zip(columns, row)) for time, row in zip(times, rows)}


def _check(solver: str, discretization: str, schedule: str, scaling: str, alpha: float, epsilon_s: float) -> None:
    for kind, value, known in (
        ("solver", solver, METHODS),
        ("discretization", discretization, grids.DISCRETIZATIONS),
        ("schedule", schedule, grids.SCHEDULES),
        ("scaling", scaling, grids.SCALINGS),
    ):
        if value not in known:
            raise UserError(f"{kind} is {value!r}; expected one of {', '.join(known)}")
    _arguments.positive("alpha", alpha)
    if not 0 < _arguments.number("epsilon_s", epsilon_s) < 1:
        raise UserError(f"epsilon_s is {epsilon_s}; expected a number between 0 and 1")
