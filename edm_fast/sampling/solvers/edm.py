"""The samplers of EDM and EDM2: Karras et al. 2022, Alg. 2; without churn it is Alg. 1 with sigma(t) = t, s(t) = 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.diffusion.schedule import edm_sigmas
from edm_fast.errors import UserError
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.solvers._runge_kutta import heun_step


@loop.sampler
def edm_sampler(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: loop.RandnLike = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = float("inf"),
    S_noise: float = 1,
) -> loop.Solver:
    """Denoise latents (N, C, H, W) ~ N(0, I) in num_steps Heun steps, 2 num_steps - 1 evaluations of `net`.

    t_i = (hi^{1/rho} + i/(N-1) (lo^{1/rho} - hi^{1/rho}))^rho, t_N = 0; each step first raises the noise level from t_i
    to (1 + gamma_i) t_i. One step is Euler's from hi to 0. `randn_like` is called once per step, also when gamma_i = 0.
    `net`: a network, or any net(x, sigma, class_labels) with sigma_min, sigma_max and round_sigma(sigma). Returns
    float64, not clipped. Bad options raise UserError.
    """
    _arguments.check_network(net)
    num_steps, rho = _arguments.steps(num_steps), _arguments.positive("rho", rho)
    lo, hi = _arguments.limits(net, sigma_min, sigma_max)
    t = loop.round_sigma(net, edm_sigmas(num_steps, lo, hi, rho))  # (N,)
    gamma, S_noise = _arguments.churn(t, num_steps, S_churn, S_min, S_max, S_noise)
    t_hat = loop.round_sigma(net, t + gamma * t)
    return _with_churn(t, t_hat, S_noise, [1] * num_steps)


@loop.sampler
def edm2_sampler(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: loop.RandnLike = torch.randn_like,
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = float("inf"),
    S_noise: float = 1,
    dtype: torch.dtype = torch.float32,
    guidance: Guidance | None = None,
) -> loop.Solver:
    """`edm_sampler` as EDM2 has it: state, levels and result have the type `dtype`, float32 or float64; sigma_min and
    sigma_max are not cut to the range of `net`; `randn_like` is called in those steps alone that add noise.

    guidance: see `edm_fast.Guidance`; the reference gets the same x, sigma and labels. Karras et al. 2024.
    """
    num_steps, rho = _arguments.steps(num_steps), _arguments.positive("rho", rho)
    lo, hi = _arguments.positive("sigma_min", sigma_min), _arguments.positive("sigma_max", sigma_max)
    if lo >= hi:
        raise UserError(f"sigma_min is {lo:g} and sigma_max is {hi:g}; expected sigma_min < sigma_max")
    t = edm_sigmas(num_steps, lo, hi, rho).to(dtype).double()
    gamma, S_noise = _arguments.churn(t, num_steps, S_churn, S_min, S_max, S_noise)
    made = _with_churn(t, (t + gamma * t).to(dtype).double(), S_noise, (gamma > 0).int().tolist())
    return dataclasses.replace(made, dtype=dtype)


def _with_churn(t: Tensor, t_hat: Tensor, S_noise: float, draws: Sequence[int]) -> loop.Solver:
    """Heun's steps from t_hat_i to t_{i+1} and at last to 0, after noise that takes t_i to t_hat_i; all (N,)."""
    noise = (t_hat * t_hat - t * t).sqrt() * S_noise
    levels = [*t.tolist(), 0.0]
    steps = []
    for sigma, sigma_next, c, drawn in zip(t_hat.tolist(), levels[1:], noise.tolist(), draws, strict=True):
        churn = [loop.move(c=c, rebase=True)] if c != 0 else []
        steps.append(loop.step(*churn, *heun_step(sigma, sigma_next), draws=drawn))
    return loop.Solver(levels, steps)
