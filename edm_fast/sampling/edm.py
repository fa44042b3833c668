"""The EDM sampler: Karras et al. 2022, Alg. 2; without churn it is Alg. 1 with sigma(t) = t, s(t) = 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edm_fast.diffusion.schedule import edm_sigmas
from edm_fast.sampling import _arguments, _loop


def edm_sampler(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: _loop.RandnLike = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = float("inf"),
    S_noise: float = 1,
) -> Tensor:
    """Denoise latents (N, C, H, W) ~ N(0, I) in num_steps Heun steps, 2 num_steps - 1 evaluations of `net`.

    t_i = (hi^{1/rho} + i/(N-1) (lo^{1/rho} - hi^{1/rho}))^rho, t_N = 0; each step first raises the noise level from t_i
    to (1 + gamma_i) t_i. One step is Euler's from hi to 0. `randn_like` is called once per step, also when gamma_i = 0.
    `net`: a network, or any net(x, sigma, class_labels) with sigma_min, sigma_max and round_sigma(sigma). Returns
    float64, not clipped.
    """
    start, steps = edm_steps(net, num_steps, sigma_min, sigma_max, rho, S_churn, S_min, S_max, S_noise)
    _arguments.check_latents(latents)
    return _loop.run(net, latents.to(torch.float64) * start, steps, class_labels, randn_like)


def edm_steps(
    net: Any,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = float("inf"),
    S_noise: float = 1,
) -> tuple[float, list[_loop.Step]]:
    """(t_0, the steps): what edm_sampler does, made on the host. Bad options raise UserError."""
    _arguments.check_network(net)
    num_steps, rho = _arguments.steps(num_steps), _arguments.positive("rho", rho)
    lo, hi = _arguments.limits(net, sigma_min, sigma_max)
    t = _loop.round_sigma(net, edm_sigmas(num_steps, lo, hi, rho))  # (N,)
    gamma, S_noise = _arguments.churn(t, num_steps, S_churn, S_min, S_max, S_noise)
    t_hat = _loop.round_sigma(net, t + gamma * t)
    noise = (t_hat * t_hat - t * t).sqrt() * S_noise
    t_next = [*t[1:].tolist(), 0.0]

    def slope_at(t: float) -> _loop.Slope:
        return _loop.Slope(sigma=t, t=t)  # d = (x - D) / t

    def stages(here: float, there: float) -> tuple[_loop.Stage, ...]:
        if there == 0:
            return _loop.first_order(slope_at, here, there)
        return _loop.second_order(slope_at, here, there, t_prime=there)

    steps = [
        _loop.Step(stages(here, there), noise=eps)
        for here, there, eps in zip(t_hat.tolist(), t_next, noise.tolist(), strict=True)
    ]
    return t[0].item(), steps
