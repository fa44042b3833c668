"""The sampler of the ablations: any solver, discretisation, schedule and scaling. Karras et al. 2022, Alg. 2 and 3."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.diffusion import schedule as grids
from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling.solvers._runge_kutta import At, first_order, second_order

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
    scale = grids.make_scaling(scaling, process)

    t = process.sigma_inv(loop.round_sigma(net, sigmas))  # (N,)
    level = process.sigma(t)
    gamma, S_noise = _arguments.churn(level, num_steps, S_churn, S_min, S_max, S_noise)
    t_hat = process.sigma_inv(loop.round_sigma(net, level + gamma * level))
    # round trips t(sigma(t)) may come out slightly below where they started
    variance = (process.sigma(t_hat) ** 2 - level**2).clip(min=0)
    noise = variance.sqrt() * scale.s(t_hat) * S_noise
    rescale = scale.s(t_hat) / scale.s(t)

    at = functools.partial(_slope, process, scale, scaling != "none")
    growth: list[dict[str, Any]] = [{} if scaling == "none" else {"a": a} for a in rescale.tolist()]
    slopes = None if solver == "euler" else alpha
    steps = [*_steps(at, slopes, t_hat.tolist(), [*t[1:].tolist(), 0.0], growth, noise.tolist())]
    return loop.Solver([*level.tolist(), 0.0], steps, (level[0] * scale.s(t[0])).item())


def _steps(
    at: At, alpha: float | None, t_hat: Sequence[float], t_next: Sequence[float], growth: Any, noise: Sequence[float]
) -> Iterator[loop.Step]:
    """Noise from t to t_hat, with x growing by `a` of `growth`; then Euler where alpha is None, and into 0."""
    for i, (here, there, grown, c) in enumerate(zip(t_hat, t_next, growth, noise, strict=True)):
        churn = [loop.move(c=c, rebase=True, **grown)] if c != 0 or grown.get("a", 1) != 1 else []
        if alpha is None or i == len(t_hat) - 1:
            stages = first_order(at, here, there)
        else:
            stages = second_order(at, here, there, alpha)
        yield loop.step(*churn, *stages, draws=1)


def _slope(process: grids.Schedule, scale: grids.Scaling, scaled: bool, time: float) -> dict[str, Any]:
    """d = (sigma'/sigma + s'/s) x - (sigma' s/sigma) D, all at `time`."""
    t = torch.tensor(time, dtype=torch.float64, device="cpu")
    sigma, sigma_deriv, s, s_deriv = process.sigma(t), process.sigma_deriv(t), scale.s(t), scale.s_deriv(t)
    p, q = sigma_deriv / sigma + s_deriv / s, sigma_deriv * s / sigma
    return {"sigma": sigma.item(), "p": p.item(), "q": q.item(), **({"s": s.item()} if scaled else {})}


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
