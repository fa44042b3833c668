"""tune: the cheapest sampler of a network that keeps a bound on the distance from the converged solution.

The truth is where the ODE takes the latents of each seed (see `_truth`). The error of a sampler on a seed is the RMS
difference of the two images in levels of 255. A bound is kept if the mean over held-out seeds, which no choice was made
on, keeps it with two standard errors to spare. Trials are thinned out on few of the other seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm_fast import __version__, timing
from edm_fast.errors import UserError
from edm_fast.evaluation import _networks
from edm_fast.evaluation._trials import Trial, Trials
from edm_fast.evaluation._truth import STORED, Truth, level_errors
from edm_fast.files import atomic_write
from edm_fast.plan import accelerate
from edm_fast.sampling import sample, sample_seeds, save_png, to_uint8
from edm_fast.sampling.images import arrange
from edm_fast.sampling.tuned import TunedSampler

SEARCHED = 3 / 8  # of the seeds; the others are held out
# of the trials for a number of evaluations: how many stay after each round, and the part of the searched seeds it uses
ROUNDS = ((12, 1 / 6), (3, 1 / 2), (1, 1.0))
CONVERGED_SEEDS = 4
PAIRS, CONTRAST = 16, 16  # pictures, and how many times the difference is made larger in them
SIGMA = 0.5  # of timed evaluations
BATCH = 32


class Errors(NamedTuple):
    """Of a sampler on some seeds, in levels of 255."""

    mean: float
    se: float  # standard error of the mean
    p95: float
    worst: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors:
        deviation = statistics.stdev(errors) if len(errors) > 1 else math.inf
        p95 = float(np.quantile(errors, 0.95))
        return cls(statistics.fmean(errors), deviation / math.sqrt(len(errors)), p95, max(errors))

    def keeps(self, bound: float) -> bool:
        return self.mean + 2 * self.se <= bound


@dataclasses.dataclass(frozen=True)
class Task:
    """What is searched for."""

    max_error: float
    evaluations: Sequence[int]
    seeds: Sequence[int]
    solvers: Sequence[str]
    precisions: Sequence[str]  # from the most exact on

    def __post_init__(self) -> None:
        if len(self.searched) < 2 or len(self.held_out) < 2:
            raise UserError(f"{len(set(self.seeds))} seeds; expected at least 6, some to search on and some held out")

    @property
    def searched(self) -> list[int]:
        seeds = list(dict.fromkeys(self.seeds))
        return seeds[: math.floor(SEARCHED * len(seeds))]

    @property
    def held_out(self) -> list[int]:
        return list(dict.fromkeys(self.seeds))[len(self.searched) :]


class Measured:
    """Errors of trials by precision and seed, kept in a file: a search that was stopped goes on from there.

    A trial is named by its coefficients, so that errors of a solver that computes something else are measured anew.
    """

    def __init__(self, truth: Truth, networks: dict[str, Any]) -> None:
        self.truth, self.networks = truth, networks
        self.path = truth.path.with_suffix(".json")
        self.header = {"edm_fast": __version__, "torch": torch.__version__}
        self.errors: dict[str, dict[str, float]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["versions"] == self.header:
                self.errors = stored["errors"]

    def __call__(self, trial: Trial, precision: str, seeds: Sequence[int]) -> list[float]:
        """RMS differences from the truth, in the order of the seeds."""
        known = self.errors.setdefault(f"{trial.key} {precision}", {})
        missing = [seed for seed in seeds if str(seed) not in known]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            found = level_errors(self.draw(trial, precision, part), self.truth.images(part)).tolist()
            # an image that is not finite is farther away than any other
            known.update((str(seed), error if math.isfinite(error) else 255.0) for seed, error in zip(part, found))
        if missing:
            with atomic_write(self.path, "w", kind="json") as file:
                json.dump({"versions": self.header, "errors": self.errors}, file)
        return [known[str(seed)] for seed in seeds]

    def draw(self, trial: Trial, precision: str, seeds: Sequence[int]) -> torch.Tensor:
        images = sample_seeds(self.networks[precision], sample, seeds, device=self.truth.device, **trial.settings)
        return images.cpu()


class Found(NamedTuple):
    """A trial at a precision, with its errors on the searched seeds and, if it came so far, on the held-out ones."""

    trial: Trial
    precision: str
    searched: Errors
    held_out: Errors | None
    kept: bool


def prepared(net: Any, precisions: Sequence[str]) -> dict[str, Any]:
    """The network at each precision."""
    return {name: net if name == STORED else accelerate(net, name) for name in precisions}


def seconds(networks: dict[str, Any]) -> dict[str, float]:
    """Of one evaluation of a batch at each precision, by turns."""
    first = next(iter(networks.values()))
    device = next(first.parameters()).device
    example = _networks.inputs(first, BATCH, SIGMA, device=device)

    def call(net: Any) -> Callable[[], Any]:
        def evaluate() -> Any:
            with torch.no_grad():
                return net(*example)

        evaluate()  # kernels are measured and weights packed in the first call
        return evaluate

    calls = {name: call(net) for name, net in networks.items()}
    return {name: min(times) for name, times in timing.by_turns(calls, 3, clock=timing.clock_of(device)).items()}


def converged(net: Any, truth: Truth, seeds: Sequence[int], progress: Callable[[int], Any]) -> float:
    """The worst RMS difference that twice the steps make, over the first few seeds."""
    seeds = seeds[:CONVERGED_SEEDS]
    finer = Truth(net, 2 * truth.steps)
    return level_errors(finer.images(seeds, progress), truth.images(seeds)).max().item()


def by_cost(evaluations: Sequence[int], seconds: dict[str, float]) -> list[tuple[int, str]]:
    """(evaluations, precision), the cheapest first. A precision that is no faster than a more exact one is left out."""
    faster: dict[str, float] = {}
    for name, time in seconds.items():
        if time < min(faster.values(), default=math.inf):
            faster[name] = time
    pairs = [(n, name) for n in evaluations for name in faster]
    return sorted(pairs, key=lambda pair: pair[0] * faster[pair[1]])


def best_trial(trials: Sequence[Trial], measured: Measured, precision: str, seeds: Sequence[int], tick: Any) -> Trial:
    """Successive halving: all on few seeds, the best of them on more."""
    left = list(trials)
    for most, share in ROUNDS:
        some = seeds[: max(1, round(share * len(seeds)))]
        means = {}
        for trial in left:
            means[trial.key] = statistics.fmean(measured(trial, precision, some))
            tick()
        left = sorted(left, key=lambda trial: means[trial.key])[:most]
    return left[0]


def search(task: Task, trials: Trials, measured: Measured, costs: dict[str, float], tick: Any) -> Iterator[Found]:
    """The best trial of each cost, from the cheapest on; ends with the first that keeps the bound on held-out seeds."""
    best: dict[int, Trial | None] = {}
    for n, precision in by_cost(task.evaluations, costs):
        if n not in best:
            of = trials.of(n)
            # the choice is made in the most exact precision, and so once for all of them
            best[n] = best_trial(of, measured, task.precisions[0], task.searched, tick) if of else None
        trial = best[n]
        if trial is None:
            continue
        searched = Errors.of(measured(trial, precision, task.searched))
        held_out = None
        if searched.mean <= task.max_error:
            held_out = Errors.of(measured(trial, precision, task.held_out))
        kept = held_out is not None and held_out.keeps(task.max_error)
        yield Found(trial, precision, searched, held_out, kept)
        if kept:
            return


def tuned_sampler(task: Task, found: Found, truth: Truth, apart: float, name: str) -> TunedSampler:
    """What the file says. apart: see `converged`."""
    assert found.held_out is not None
    error = {"bound": task.max_error, **found.held_out._asdict(), "images": len(task.held_out)}
    return TunedSampler(
        settings=found.trial.settings,
        evaluations=found.trial.evaluations,
        precision=found.precision,
        error={**error, "seeds": _ranges(task.held_out)},
        truth={
            "solver": "heun",
            "num_steps": truth.steps,
            "precision": truth.precision,
            "converged": apart,
            "converged_seeds": _ranges(task.seeds[:CONVERGED_SEEDS]),
        },
        checkpoint={"name": name, "digest": truth.digest},
        versions={"edm_fast": __version__, "torch": str(torch.__version__), "device": truth.device.type},
    )


def _ranges(seeds: Sequence[int]) -> str:
    """ "1,5-10", as options take it."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def save_pairs(path: Path, task: Task, found: Found, measured: Measured) -> None:
    """A picture of held-out seeds: the sampler's image, the truth, and grey with 16 times their difference."""
    seeds = task.held_out[:PAIRS]
    ours, truth = measured.draw(found.trial, found.precision, seeds).clamp(-1, 1), measured.truth.images(seeds)
    difference = CONTRAST * (ours - truth.clamp(-1, 1))
    rows = zip(*(to_uint8(images) for images in (ours, truth, difference)))
    save_png(path, arrange([np.concatenate(row, axis=1) for row in rows]), "grid")
