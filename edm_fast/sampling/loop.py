"""The one sampling loop, and what it runs: a solver is structure plus rows of coefficients.

A step takes x from one noise level to the next in stages:

    D = D(x/s; sigma)                                   the denoiser is evaluated
    d = (p x - q D) / t                                 the slope of the ODE (Karras et al. 2022, Eq. 4)
    x = a base + h sum_k weights_k history_k + c eps    the state moves

`base` is x at the start of the step, or what its last stage marked `rebase` left. The history has an entry for each
evaluation, newest first, and outlives the step: d after `slope`, D after `data`. `move` evaluates nothing. eps is a
draw of the step; two stages may use the same one. Some steps in these terms:

    Euler, Heun               one slope; two slopes, the second at the end point
    churn                     a move that adds noise and marks the new base, then the slopes
    multistep                 one slope or data stage with as many weights as points
    predictor-corrector       a move to the end point, then a slope or data stage there that starts from `base` again;
                              the first step begins with an evaluation, the others find it in the history
    ancestral noise           c in the last stage; with c in an inner stage too there are two draws a step
    restart                   a step of one move that adds noise, from a low level up to a high one

A stage is structure: it says which coefficients exist, how many entries of the history enter, and what is kept, and
holds no number. The numbers of a step are its row. A run has few structures and many rows, so a network whose
evaluations are CUDA graphs records a step once for each structure: `net.raw.replayer(net)` gives
replay(structure, step, row, tensors), which is step(denoise, row, *tensors). Noise is drawn outside of it. Other
networks get calls.

To add a solver see `edm_fast.sampling.solvers`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.networks._inputs import described
from edm_fast.ops import solver_update
from edm_fast.sampling import _arguments, _guidance
from edm_fast.sampling._guidance import Guidance

RandnLike = Callable[[Tensor], Tensor]
Denoise = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]  # D(x; sigma, labels)
Callback = Callable[[int, float, Tensor, Tensor], "Tensor | None"]
Number = float | Tensor  # tensors in a step graph: numbers on the device, other ones at each replay
P = ParamSpec("P")

COEFFICIENTS = ("sigma", "s", "p", "q", "t", "a", "h", "c")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage without its numbers."""

    keeps: str | None  # what enters the history: "slope", "data", "state" (x itself), or nothing
    names: tuple[str, ...]  # those of COEFFICIENTS that the row has; the others are 1 and cost no operation
    weights: int  # as many entries of the history are summed; 0 after an evaluation: its own, with weight 1
    draw: int | None  # which draw of the step is eps
    rebase: bool

    @property
    def evaluates(self) -> bool:
        return self.keeps in ("slope", "data")

    @property
    def terms(self) -> int:
        """How many entries of the history the stage sums."""
        return self.weights or int(self.evaluates)


@dataclasses.dataclass(frozen=True)
class Step:
    """Stages, and their numbers one after the other: of each stage its coefficients, then its weights."""

    stages: tuple[Stage, ...]
    row: tuple[float, ...]
    draws: int  # noise is drawn as often, used or not

    def coefficients(self) -> list[dict[str, Any]]:
        """The numbers of each stage by name, to look at."""
        return [{**numbers, "weights": weights} for _, numbers, weights in _with_numbers(self.stages, self.row)]


def slope(sigma: float, weights: Sequence[float] = (), draw: int = 0, **coefficients: Any) -> tuple[Stage, list[float]]:
    """D at x/s and sigma; d = (p x - q D) / t is kept, and x moves. `t` = sigma gives dx/dsigma = (x - D)/sigma."""
    return _stage("slope", weights, draw, sigma=sigma, **coefficients)


def data(sigma: float, weights: Sequence[float] = (), draw: int = 0, **coefficients: Any) -> tuple[Stage, list[float]]:
    """D at x/s and sigma is kept, and x moves."""
    return _stage("data", weights, draw, sigma=sigma, **coefficients)


def state(weights: Sequence[float] = (), draw: int = 0, **coefficients: Any) -> tuple[Stage, list[float]]:
    """x is kept, and moves: for methods that guess a first slope from x alone."""
    return _stage("state", weights, draw, **coefficients)


def move(
    weights: Sequence[float] = (), draw: int = 0, rebase: bool = False, **coefficients: Any
) -> tuple[Stage, list[float]]:
    """x moves; nothing is evaluated or kept."""
    return _stage(None, weights, draw, rebase, **coefficients)


def _stage(
    keeps: str | None, weights: Sequence[float], draw: int, rebase: bool = False, **coefficients: Any
) -> tuple[Stage, list[float]]:
    names = tuple(name for name in COEFFICIENTS if name in coefficients)
    if len(names) != len(coefficients):
        raise TypeError(f"coefficients {', '.join(coefficients)}; expected some of {', '.join(COEFFICIENTS)}")
    stage = Stage(keeps, names, len(weights), draw if "c" in names else None, rebase)
    return stage, [*(coefficients[name] for name in names), *weights]


def step(*parts: tuple[Stage, Sequence[float]], draws: int | None = None) -> Step:
    """A step of stages with their numbers. draws: how often noise is drawn; None: as often as it is used."""
    stages, rows = tuple(stage for stage, _ in parts), (numbers for _, numbers in parts)
    return Step(stages, tuple(itertools.chain(*rows)), used_draws(stages) if draws is None else draws)


def used_draws(stages: Iterable[Stage]) -> int:
    """How many draws of a step enter x."""
    return max((stage.draw + 1 for stage in stages if stage.draw is not None), default=0)


def _with_numbers(
    stages: Iterable[Stage], row: Iterable[Number]
) -> Iterator[tuple[Stage, dict[str, Any], list[Number]]]:
    numbers = iter(row)
    for stage in stages:
        coefficients: dict[str, Any] = dict(zip(stage.names, numbers))
        yield stage, coefficients, list(itertools.islice(numbers, stage.weights))


@dataclasses.dataclass(frozen=True)
class Solver:
    """All steps of a run, made on the host. Raises UserError for a step that cannot be evaluated."""

    levels: Sequence[float]  # (N + 1,): where each step starts, then where the last one ends
    steps: Sequence[Step]  # (N,)
    start: float | None = None  # x_0 = start latents; None: the first level
    limit: Callable[[Tensor], Tensor] | None = None  # replaces every D, before it is used or kept
    dtype: torch.dtype = torch.float64  # of x and the history, float32 or float64

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(f"dtype is {self.dtype}; expected torch.float32 or torch.float64")
        if len(self.levels) != len(self.steps) + 1:
            raise UserError(
                f"{len(self.steps)} steps and {len(self.levels)} levels; expected one level more than steps"
            )
        for i, step in enumerate(self.steps):
            for stage, numbers, _ in _with_numbers(step.stages, step.row):
                if stage.evaluates and not 0 < numbers["sigma"] < math.inf:
                    raise UserError(
                        f"step {i} of {len(self.steps)} would evaluate the network at noise level {numbers['sigma']}; "
                        "expected a positive number (check sigma_min, sigma_max, rho and alpha)"
                    )
            if not all(map(math.isfinite, step.row)):
                raise UserError(f"step {i} of {len(self.steps)} has a coefficient that is no finite number")
        if missing := self._entries()[0]:
            raise UserError(f"the steps sum {missing} more entries of the history than there are by then")

    @property
    def evaluations(self) -> int:
        return sum(stage.evaluates for step in self.steps for stage in step.stages)

    def guided_evaluations(self, guidance: Guidance | None) -> int:
        """Those that are guided: as often D_ref is evaluated."""
        guided = (structure.stages for structure in self.structures(guidance) if structure.guidance is not None)
        return sum(stage.evaluates for stages in guided for stage in stages)

    def _entries(self) -> list[int]:
        """How many entries of the history are read later: than the start, then than each step."""
        entries = [0]
        for step in reversed(self.steps):
            reads = entries[-1]
            for stage in reversed(step.stages):
                # what a stage keeps itself need not be there before
                reads = max(0, max(reads, stage.terms) - (stage.keeps is not None))
            entries.append(reads)
        return entries[::-1]

    def structures(self, guidance: Guidance | None = None, reports: bool = False) -> list[Structure]:
        """That of each step."""
        return [
            Structure(
                step.stages, entries, self.limit, guidance if guidance and guidance.active(level) else None, reports
            )
            for step, entries, level in zip(self.steps, self._entries()[1:], map(max, self.levels, self.levels[1:]))
        ]


@dataclasses.dataclass(frozen=True)
class Structure:
    """All of a step but its numbers and tensors."""

    stages: tuple[Stage, ...]
    entries: int  # of the history, for the steps after it
    limit: Callable[[Tensor], Tensor] | None = None
    guidance: Guidance | None = None
    reports: bool = False  # the last D is a result, too


class StopSampling(Exception):  # noqa: N818
    """Raised by a callback: the run ends, and x as it is at this point is the result."""


def run(
    net: Any,
    latents: Tensor,
    solver: Solver,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    *,
    guidance: Guidance | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Take start latents (N, C, H, W) through the steps of `solver`; in the type of the solver, not clipped.

    `randn_like` is called as often as each step says; what it returns is cast to that type.
    guidance: where guidance.active(the higher level of the step), guidance(denoise, x, sigma, labels) is D at each
    evaluation of the step.
    callback(i, sigma, x, denoised) after step i: x at the level sigma it has reached, and the last D evaluated. It may
    return another x, and stop the run by raising StopSampling; it must not write to what it is given.
    """
    _arguments.check_latents(latents)
    _guidance.check(guidance, net, class_labels)
    x = latents.to(solver.dtype) * (solver.levels[0] if solver.start is None else solver.start)
    replay = _replayer(net, guidance)
    history: list[Tensor] = []
    denoised = x
    structures = solver.structures(guidance, callback is not None)
    for i, (step, structure) in enumerate(zip(solver.steps, structures)):
        # row-major whatever the layout: a generator fills a tensor in memory order
        draws = [_arguments.checked_noise(randn_like(x.contiguous()), x) for _ in range(step.draws)]
        tensors: Any = (x, class_labels, *draws[: used_draws(step.stages)], *history)
        advanced = functools.partial(advance, structure)
        results = (
            advanced(net, step.row, *tensors) if replay is None else replay(structure, advanced, step.row, tensors)
        )
        x, *history = results[: 1 + structure.entries]
        if callback is not None:
            denoised = results[-1] if len(results) > 1 + structure.entries else denoised
            try:
                x = _arguments.checked_state(callback(i, solver.levels[i + 1], x, denoised), x)
            except StopSampling:
                return x
    return x


def _replayer(net: Any, guidance: Guidance | None) -> Callable[..., Sequence[Tensor]] | None:
    replayer = getattr(getattr(net, "raw", None), "replayer", None)
    if replayer is None or (guidance is not None and guidance.net is not None):  # a graph holds one network
        return None
    return replayer(net)


def advance(
    structure: Structure, denoise: Denoise, row: Iterable[Number], x: Tensor, labels: Tensor | None, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """A step. tensors: the draws it uses, then the history. Returns x, the history for the steps after it, and, if the
    structure reports it and there is one, the last D."""
    count = used_draws(structure.stages)
    draws, history, base, D = tensors[:count], [*tensors[count:]], x, None
    for stage, numbers, weights in _with_numbers(structure.stages, row):
        noise = {} if stage.draw is None else {"noise": draws[stage.draw]}
        sigma, s = numbers.pop("sigma", None), numbers.pop("s", None)
        if sigma is not None:
            D = _denoised(structure, denoise, x, labels, sigma, s)
        if stage.keeps == "slope":
            newest, *older = weights or [1.0]
            terms = history[: len(older)]
            x, entry = solver_update(base, x, D, w=newest, terms=terms, weights=older, **numbers, **noise)
            history.insert(0, entry)
        else:
            if stage.keeps is not None:
                history.insert(0, x if D is None or stage.keeps == "state" else D)
            weights = weights or [1.0] * stage.terms
            x, _ = solver_update(base, terms=history[: len(weights)], weights=weights, **numbers, **noise)
        if stage.rebase:
            base = x
    return x, *history[: structure.entries], *([D] if structure.reports and D is not None else [])


def _denoised(
    structure: Structure, denoise: Denoise, x: Tensor, labels: Tensor | None, sigma: Number, s: Number | None
) -> Tensor:
    if structure.guidance is not None:
        denoise = functools.partial(structure.guidance, denoise)
    # divided by a tensor: CUDA would multiply by the rounded inverse of a number
    D = denoise(x if s is None else x / _on_device(s, x), _on_device(sigma, x), labels)
    if not isinstance(D, Tensor) or D.shape != x.shape:
        raise UserError(f"net returned {described(D)}; expected a denoised image for each, {tuple(x.shape)}")
    D = D.to(x.dtype)
    return D if structure.limit is None else structure.limit(D)


def _on_device(number: Number, x: Tensor) -> Tensor:
    # filled there: no copy from the host, so no wait
    return number if isinstance(number, Tensor) else torch.full((), number, dtype=x.dtype, device=x.device)


def round_sigma(net: Any, sigmas: Tensor) -> Tensor:
    """The network's nearest supported levels, float64 on the host. The only place that may wait for a device."""
    return torch.as_tensor(net.round_sigma(sigmas)).to(device="cpu", dtype=torch.float64)


def denoised_at_the_end(solver: Solver) -> Solver:
    """One more step: x = D at the last level."""
    last = step(data(solver.levels[-1], a=0.0))
    return dataclasses.replace(solver, levels=[*solver.levels, 0.0], steps=[*solver.steps, last])


def sampler(solver: Callable[P, Solver]) -> Callable[P, Tensor]:
    """A sampler of a function with the sampler's signature that makes its steps. The function stays at `.solver`."""

    @functools.wraps(solver)
    def sample(
        net: Any,
        latents: Tensor,
        class_labels: Tensor | None = None,
        randn_like: RandnLike = torch.randn_like,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        steps = solver(net, latents, class_labels, randn_like, *args, **kwargs)  # type: ignore[call-arg, arg-type]
        watching: dict[str, Any] = {name: kwargs.get(name) for name in ("guidance", "callback")}
        return run(net, latents, steps, class_labels, randn_like, **watching)

    sample.solver = solver  # type: ignore[attr-defined]
    sample.__signature__ = inspect.signature(solver).replace(return_annotation="Tensor")  # type: ignore[attr-defined]
    return sample  # type: ignore[return-value]
