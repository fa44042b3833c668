"""The ODE run upwards: edm_fast.invert, from images to latents, and edm_fast.log_likelihood along the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.networks._inputs import described
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.solvers._sample import on_levels, sample


def invert(
    net: Any,
    images: Tensor,
    class_labels: Tensor | None = None,
    *,
    solver: str = "heun",
    order: int | None = None,
    num_steps: int | None = None,
    nfe: int | None = None,
    levels: str | Sequence[float] | Tensor | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    guidance: Guidance | None = None,
    callback: loop.Callback | None = None,
    **solver_options: Any,
) -> Tensor:
    """The latents (N, C, H, W), float64, of which `edm_fast.sample` with ends="sigma_min" makes these images.

    images (N, C, H, W) in [-1, 1] are x at the lowest level. The ODE dx/dsigma = (x - D(x; sigma))/sigma (Karras et al.
    2022, Eq. 1) is run up the same levels that sample() runs down, and x at the highest is divided by it.
    Every solver that draws no noise works: adams, deis_tab, dpm2, dpmpp, euler, exp_ab_eps, exp_ab_x,
    gradient_estimation, heun, ipndm, ipndm_v, listed (weights of the steps upwards), midpoint, sdm (of first order; its
    switch counts from the lowest level), unipc, and dpmpp_2m_sde and dpmpp_3m_sde with eta = 0. Settings are those of
    `edm_fast.sample`; a list of levels falls, as there, and does not end at 0. Upwards the first step counts as much as
    others, so that multistep solvers, which begin with Euler's, are of second order at most. UserError for other
    solvers and for bad settings.
    """
    _check_images(images)
    settings = {"order": order, "num_steps": num_steps, "nfe": nfe, "levels": levels, "rho": rho}
    steps = _upward(net, solver, sigma_min=sigma_min, sigma_max=sigma_max, **settings, **solver_options)
    return loop.run(net, images, steps, class_labels, guidance=guidance, callback=callback) / steps.levels[-1]


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor) or images.ndim < 2 or not images.is_floating_point():
        raise UserError(f"images is {described(images)}; expected floating-point numbers (N, C, H, W) in [-1, 1]")


def _upward(net: Any, solver: Any = "heun", order: Any = None, levels: Any = None, **settings: Any) -> loop.Solver:
    """The solver that starts from x at the lowest level and ends at the highest."""
    if not isinstance(solver, str) or solver.endswith(".json"):
        raise UserError(f"solver is {str(solver)[:80]}; expected a name, as the steps of other ones go down alone")
    ends = "sigma_min" if levels is None or isinstance(levels, str) else None
    make = sample.solver  # type: ignore[attr-defined]
    down = make(net, None, solver=solver, order=order, levels=levels, ends=ends, **settings)
    if any(step.draws for step in down.steps):
        raise UserError(f"solver {solver} draws noise; expected one that follows the ODE, such as heun")
    if down.limit is not None or any(stage.keeps == "state" for step in down.steps for stage in step.stages):
        raise UserError("dynamic_thresholding and afs do not go with the ODE run upwards")
    if not down.levels[-1] > 0:
        raise UserError("levels end at 0; expected the level that the images are at, such as 0.002")
    of_grid = ("num_steps", "nfe", "sigma_min", "sigma_max", "rho")
    options = {name: value for name, value in settings.items() if name not in of_grid}
    return dataclasses.replace(on_levels(solver, order, options)([*reversed(down.levels)]), start=1.0)


class LogLikelihood(NamedTuple):
    nats: Tensor  # (N,) float64: ln of the density of each image
    bits_per_dim: (
        Tensor  # (N,) the same for 256 levels a number, [-1, 1] being 0 to 255: -log2(density)/n + log2(127.5)
    )
    latents: Tensor  # (N, C, H, W) float64


def log_likelihood(
    net: Any,
    images: Tensor,
    class_labels: Tensor | None = None,
    randn_like: loop.RandnLike = torch.randn_like,
    *,
    probes: int | None = 1,
    num_steps: int | None = None,
    **settings: Any,
) -> LogLikelihood:
    """ln p(x) of images (N, C, H, W) under the model's ODE, which ends in N(0, sigma_max^2) at the highest level.

    ln p(x) = ln p(x_T) + int tr(d/dx (x - D)/sigma) dsigma along the path of `invert`, in the same steps (Song et al.
    2021, Eq. 39). The trace is estimated by v^T (dD/dx) v with random signs v, the same along the whole path:
    Hutchinson's estimator, unbiased. v has the signs of randn_like(images); `probes` of them are averaged. None: the
    exact trace, which costs as many products as an image has numbers.
    num_steps: 64 if neither it nor nfe nor a list of levels is set. settings: those of `invert`, without guidance and
    callback. Pixels of whole levels have a density only with uniform noise of a level's width added. `net` needs
    gradients in x. UserError for bad settings.
    """
    _arguments.check_network(net)
    _check_images(images)
    for name in ("guidance", "callback"):
        if name in settings:
            raise UserError(f"{name} does not go with log_likelihood")
    if num_steps is None and settings.get("nfe") is None and isinstance(settings.get("levels"), (str, type(None))):
        num_steps = 64
    steps = _upward(net, num_steps=num_steps, **settings)
    x = images.detach().to(torch.float64)
    vectors = None
    if probes is not None:
        draws = [_arguments.checked_noise(randn_like(x), x) for _ in range(_arguments.steps(probes, "probes"))]
        vectors = [torch.where(noise < 0, -1.0, 1.0).to(x) for noise in draws]
    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    with torch.no_grad():
        top = loop.run(_WithTrace(net, x.shape, vectors), state, steps, class_labels)
    sigma, n = steps.levels[-1], x[0].numel()
    latents = top[:, :-1].reshape(x.shape) / sigma
    nats = top[:, -1] - latents.square().flatten(1).sum(1) / 2 - n * (math.log(sigma) + math.log(2 * math.pi) / 2)
    return LogLikelihood(nats, math.log2(127.5) - nats / (n * math.log(2)), latents)


class _WithTrace:
    """A denoiser of (x, l), (N, n + 1), whose slope in l is the trace of d/dx (x - D)/sigma."""

    def __init__(self, net: Any, shape: torch.Size, vectors: Sequence[Tensor] | None) -> None:
        self.net, self.shape, self.vectors = net, shape, vectors

    def __call__(self, state: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        with torch.enable_grad():
            x = state[:, :-1].detach().reshape(self.shape).requires_grad_()
            D = self.net(x, sigma, labels)
        n = state.shape[1] - 1
        if self.vectors is None:
            unit = torch.eye(n, dtype=D.dtype, device=D.device).reshape(n, 1, *self.shape[1:])
            trace = self._products(D, x, [v.expand_as(D) for v in unit])
        else:
            trace = self._products(D, x, self.vectors) / len(self.vectors)
        entry = state[:, -1] - (n - trace)  # (l - entry)/sigma is the trace
        return torch.cat([D.detach().to(state.dtype).flatten(1), entry[:, None]], dim=1)

    @staticmethod
    def _products(D: Tensor, x: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """The sum of v^T (dD/dx) v over the vectors, of each image, (N,)."""
        total = x.new_zeros(len(x))
        for left, v in enumerate(reversed(vectors)):
            [g] = torch.autograd.grad(D, x, v.to(D.dtype), retain_graph=left + 1 < len(vectors))
            total += (g * v).flatten(1).sum(1)
        return total
