"""The EDM sampler: Karras et al. 2022, Alg. 2; without churn it is Alg. 1 with sigma(t) = t, s(t) = 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edm_fast.diffusion.schedule import edm_sigmas
from edm_fast.sampling import _arguments, loop
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
    noise = (t_hat * t_hat - t * t).sqrt() * S_noise
    levels = [*t.tolist(), 0.0]
    steps = []
    for sigma, sigma_next, c in zip(t_hat.tolist(), levels[1:], noise.tolist(), strict=True):
        churn = [loop.move(c=c, rebase=True)] if c != 0 else []
        steps.append(loop.step(*churn, *heun_step(sigma, sigma_next), draws=1))
    return loop.Solver(levels, steps)
