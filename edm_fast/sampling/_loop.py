"""The one sampling loop. A method is data: a list of steps whose coefficients are Python floats, made beforehand.

A step first adds noise, x_hat = scale x + noise eps, then runs its stages. A stage evaluates the denoiser and moves:

    D = D(x/s; sigma)                                   skipped where sigma is None
    d = (p x - q D) / t                                 the slope of the ODE (Karras et al. 2022, Eq. 4)
    x = a x_hat + h sum_k weights_k history_k           history, newest first: d or D, whichever the stage keeps

The history outlives the step, so one-step methods (Euler, Heun), multistep ones (weights over several steps) and
predictor-correctors (a second stage at the end point, the next step starting with a stage without sigma) are all lists
of steps.

A step is a function of tensors and of its coefficients. A network whose evaluations are CUDA graphs runs it as one:
`net.model.replayer(net)` gives replay(structure, step, row, tensors), which is step(denoise, row, *tensors); the
structure says all of the step but its numbers, so that the steps of a run share a graph or two. Noise is drawn outside.
Other networks get plain calls.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.networks._inputs import described
from edm_fast.ops import solver_update
from edm_fast.sampling import _arguments

RandnLike = Callable[[Tensor], Tensor]
Number = float | Tensor  # tensors while a graph is recorded: numbers on the device, other ones at each replay


@dataclasses.dataclass(frozen=True)
class Slope:
    """Where the denoiser is evaluated, D(x/s; sigma), and the slope made of it, d = (p x - q D) / t."""

    sigma: Number
    s: Number = 1.0
    p: Number = 1.0
    q: Number = 1.0
    t: Number = 1.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """x = a x_hat + h sum_k weights_k history_k; `at` None takes no evaluation, `keep` says what enters the history."""

    at: Slope | None
    h: Number = 1.0
    weights: tuple[Number, ...] = (1.0,)
    a: Number = 1.0
    keep: str = "slope"


@dataclasses.dataclass(frozen=True)
class Step:
    """x_hat = scale x + noise eps, then the stages."""

    stages: tuple[Stage, ...]
    scale: Number = 1.0
    noise: Number = 0.0


def second_order(
    slope_at: Callable[[float], Slope], t: float, t_next: float, alpha: float = 1, t_prime: float | None = None
) -> tuple[Stage, Stage]:
    """Two stages, the second at t' = t + alpha h with weights 1 - 1/(2 alpha) and 1/(2 alpha).

    alpha = 1: Heun, 1/2: midpoint, 2/3: Ralston. Karras et al. 2022, Alg. 3. `t_prime` replaces t + alpha h where the
    caller knows it without rounding.
    """
    h = t_next - t
    last = 1 / (2 * alpha)
    return (
        Stage(slope_at(t), h=alpha * h),
        Stage(slope_at(t + alpha * h if t_prime is None else t_prime), h=h, weights=(last, 1 - last)),
    )


def first_order(slope_at: Callable[[float], Slope], t: float, t_next: float) -> tuple[Stage]:
    """Euler: x + h d."""
    return (Stage(slope_at(t), h=t_next - t),)


def run(
    net: Any,
    x: Tensor,
    steps: Sequence[Step],
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
) -> Tensor:
    """Take x (N, C, H, W) float64 through `steps`. `randn_like` is called once per step, used or not; what it returns
    is cast to float64.
    """
    check(steps)
    ask = getattr(getattr(net, "model", None), "replayer", None)
    replay = ask(net) if ask is not None else None
    history: list[Tensor] = []
    for step, kept in zip(steps, _kept(steps), strict=True):
        # row-major whatever the layout: a generator fills a tensor in memory order
        eps = _arguments.checked_noise(randn_like(x.contiguous()), x)
        tensors: Any = (x, eps if step.noise != 0 or step.scale != 1 else None, class_labels, *history)
        if replay is None:
            x, *history = advance(net, step, kept, *tensors)
        else:
            form, numbers = split(step)
            x, *history = replay((form, kept), functools.partial(_taken, step, kept), numbers, tensors)
    return x


def advance(
    net: Any, step: Step, kept: int, x: Tensor, eps: Tensor | None, labels: Tensor | None, *history: Tensor
) -> tuple[Tensor, ...]:
    """x after a step, then the newest `kept` entries of the history. eps None: x_hat = x."""
    x_hat = x
    if eps is not None:
        x_hat, _ = solver_update(x, a=step.scale, noise=eps, c=step.noise)
    x, entries = x_hat, [*history]
    for stage in step.stages:
        x = _advance(net, x_hat, x, stage, labels, entries)
    return x, *entries[:kept]


def _taken(step: Step, kept: int, denoise: Any, numbers: Iterable[Number], *tensors: Any) -> tuple[Tensor, ...]:
    """`advance` with the numbers of `split`, perhaps as a tensor on the device, in place of the step's own."""
    left = iter(numbers)
    return advance(denoise, _mapped(lambda number: next(left), step), kept, *tensors)


def split(step: Step) -> tuple[Any, list[float]]:
    """(form, numbers): the coefficients that are neither 0 nor 1 in order, and the step with None in their place.

    Of 0 and 1 the loop and `solver_update` make other operations.
    """
    numbers: list[float] = []
    return _mapped(numbers.append, step), numbers


def _mapped(function: Callable[[float], Any], part: Any) -> Any:
    """The same dataclasses and tuples with function(number) for every number but 0 and 1."""
    if isinstance(part, tuple):
        return tuple(_mapped(function, item) for item in part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = [field.name for field in dataclasses.fields(part)]
        return dataclasses.replace(part, **{name: _mapped(function, getattr(part, name)) for name in fields})
    return function(part) if isinstance(part, (int, float)) and part not in (0, 1) else part


def _kept(steps: Sequence[Step]) -> list[int]:
    """How many entries of the history later steps read, for each step."""
    reads, kept = 0, []
    for step in reversed(steps):
        kept.append(reads)
        for stage in reversed(step.stages):
            # what a stage evaluates itself need not be there before
            reads = max(0, max(reads, len(stage.weights)) - (stage.at is not None))
    return kept[::-1]


def _advance(net: Any, x_hat: Tensor, x: Tensor, stage: Stage, labels: Tensor | None, history: list[Tensor]) -> Tensor:
    """One stage; `history` is extended in place, newest first."""
    at, weights = stage.at, stage.weights
    D = _denoise(net, x, at, labels) if at is not None else None
    if at is None or stage.keep == "denoised":
        if D is not None:
            history.insert(0, D)
        x, _ = solver_update(x_hat, a=stage.a, h=stage.h, terms=history[: len(weights)], weights=weights)
        return x
    older = len(weights) - 1
    x, d = solver_update(
        x_hat,
        x,
        D,
        p=at.p,
        q=at.q,
        t=at.t,
        a=stage.a,
        h=stage.h,
        w=weights[0],
        terms=history[:older],
        weights=weights[1:],
    )
    history.insert(0, d)
    return x


def _denoise(net: Any, x: Tensor, at: Slope, labels: Tensor | None) -> Tensor:
    # divided by a tensor: CUDA would multiply by the rounded inverse of a number
    scaled = x if not isinstance(at.s, Tensor) and at.s == 1 else x / _on_device(at.s, x)
    D = net(scaled, _on_device(at.sigma, x), labels)
    if not isinstance(D, Tensor) or D.shape != x.shape:
        raise UserError(f"net returned {described(D)}; expected a denoised image for each, {tuple(x.shape)}")
    return D.to(torch.float64)


def _on_device(number: Number, x: Tensor) -> Tensor:
    # filled there: no copy from the host, so no wait
    return number if isinstance(number, Tensor) else torch.full((), number, dtype=torch.float64, device=x.device)


def check(steps: Sequence[Step]) -> None:
    """UserError if a level at which the denoiser would be evaluated is not a positive number."""
    for i, step in enumerate(steps):
        for stage in step.stages:
            if stage.at is not None and not 0 < stage.at.sigma < math.inf:
                raise UserError(
                    f"step {i} of {len(steps)} would evaluate the network at noise level {stage.at.sigma}; "
                    "expected a positive number (check sigma_min, sigma_max, rho and alpha)"
                )


def round_sigma(net: Any, sigmas: Tensor) -> Tensor:
    """The network's nearest supported levels, float64 on the host. The only place that may wait for a device."""
    return torch.as_tensor(net.round_sigma(sigmas)).to(device="cpu", dtype=torch.float64)
