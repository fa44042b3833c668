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
from edm_fast.evaluation.accuracy import draw, error_levels
from edm_fast.evaluation.tuning._fit import Fits, Fitted
from edm_fast.evaluation.tuning._trials import FITTED, Trial, check_solvers, fitted_trial, fixed_trials, trial
from edm_fast.evaluation.tuning._truth import BATCH, COMPARED, STORED, Truth
from edm_fast.files import atomic_write
from edm_fast.pictures import GRID
from edm_fast.plan import accelerate
from edm_fast.sampling import sample, save_png, to_uint8
from edm_fast.sampling.images import arrange
from edm_fast.sampling.tuned import TunedSampler

SEARCHED = 3 / 8  # of the seeds; the others are held out
# of the fixed samplers for a number of evaluations: how many stay after each round, and on how many searched seeds
ROUNDS = ((12, 1 / 12), (3, 1 / 2), (1, 1.0))
HOPELESS = 2.0  # times the bound: where the fitted sampler errs more, no fixed one keeps it
PAIRS, CONTRAST = 16, 16  # pictures, and how many times the difference is made larger in them
SIGMA = 0.5  # of timed evaluations


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
        check_solvers(self.solvers)
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
    """What was computed of samplers, kept in a file: a search that was stopped goes on from there.

    The errors of a trial are named by its coefficients, so that a solver that computes something else is measured anew.
    """

    def __init__(self, truth: Truth, networks: dict[str, Any]) -> None:
        self.truth, self.networks = truth, networks
        self.path = truth.path.with_suffix(".json")
        self._stored: dict[str, Any] = {
            "versions": {"edm_fast": __version__, "torch": str(torch.__version__)},
            "errors": {},  # by trial and precision, then seed
            "fitted": {},  # by precision, evaluations and seeds
        }
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["versions"] == self._stored["versions"] and found.keys() == self._stored.keys():
                self._stored = found

    def __len__(self) -> int:
        return len(self._stored["errors"])

    def errors(self, trial: Trial, precision: str, seeds: Sequence[int]) -> list[float]:
        """RMS differences from the truth, in the order of the seeds."""
        known = self._stored["errors"].setdefault(f"{trial.key} {precision}", {})
        missing = [seed for seed in seeds if str(seed) not in known]
        if missing:
            images = self.draw(trial, precision, missing)
            finite = images.isfinite().flatten(1).all(1)
            found = error_levels(images.where(finite[:, None, None, None], 0), self.truth.images(missing))
            # an image that is not finite is farther away than any other
            known.update(zip(map(str, missing), found.where(finite, 255.0).tolist(), strict=True))
            self._store()
        return [known[str(seed)] for seed in seeds]

    def of_file(self, tuned: TunedSampler, seeds: Sequence[int]) -> list[float]:
        """As `errors`, of a sampler file."""
        method = {name: value for name, value in tuned.settings.items() if name != "levels"}
        levels = {"levels": tuned.settings["levels"]}
        return self.errors(trial(self.networks[tuned.precision], method, "listed", levels), tuned.precision, seeds)

    def fitted(self, fits: Fits, precision: str, evaluations: int) -> Fitted:
        key = f"{precision} {evaluations} {ranges(fits.seeds)}"
        if key not in self._stored["fitted"]:
            self._stored["fitted"][key] = fits.best(evaluations)
            self._store()
        return Fitted(*self._stored["fitted"][key])

    def _store(self) -> None:
        with atomic_write(self.path, "w", kind="json") as file:
            json.dump(self._stored, file)

    def draw(self, trial: Trial, precision: str, seeds: Sequence[int]) -> torch.Tensor:
        """(N, C, R, R) on the host."""
        net = self.networks[precision]
        return draw(net, sample, seeds, BATCH, device=self.truth.device, **trial.settings).cpu()


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


def by_cost(evaluations: Sequence[int], seconds: dict[str, float]) -> list[tuple[int, str]]:
    """(evaluations, precision), the cheapest first. A precision that is no faster than a more exact one is left out."""
    faster: dict[str, float] = {}
    for name, time in seconds.items():
        if time < min(faster.values(), default=math.inf):
            faster[name] = time
    pairs = [(n, name) for n in evaluations for name in faster]
    return sorted(pairs, key=lambda pair: pair[0] * faster[pair[1]])


class Search:
    """The samplers of a network that a task allows. tick() is called after each one that is measured."""

    def __init__(self, task: Task, measured: Measured, tick: Callable[[], Any] = lambda: None) -> None:
        self.task, self.measured, self.tick = task, measured, tick
        self.precision = task.precisions[0]  # the most exact one decides on the samplers, and so once for all
        self.net = measured.networks[self.precision]
        self.fits = Fits(self.net, task.searched, measured.truth.images(task.searched))

    def run(self, costs: dict[str, float]) -> Iterator[Found]:
        """The best samplers, the cheapest first; ends with the first that keeps the bound on the held-out seeds.

        costs: seconds of an evaluation at each precision.
        """
        best: dict[int, list[Trial]] = {}
        for n, precision in by_cost(self.task.evaluations, costs):
            if n not in best:
                best[n] = self.best(n)
            for found in (self.judged(each, precision) for each in best[n]):
                yield found
                if found.kept:
                    return

    def judged(self, trial: Trial, precision: str) -> Found:
        """The held-out seeds are asked where the searched ones keep the bound."""
        bound = self.task.max_error
        searched, held_out = Errors.of(self.measured.errors(trial, precision, self.task.searched)), None
        if searched.mean <= bound:
            held_out = Errors.of(self.measured.errors(trial, precision, self.task.held_out))
        return Found(trial, precision, searched, held_out, held_out is not None and held_out.keeps(bound))

    def best(self, evaluations: int) -> list[Trial]:
        """The fitted sampler and the best of the others, the better one first."""
        found, hopeless = [], False
        if FITTED in self.task.solvers:
            fitted = fitted_trial(self.net, self.measured.fitted(self.fits, self.precision, evaluations))
            hopeless = self.mean(fitted, self.task.searched) > HOPELESS * self.task.max_error
            found.append(fitted)
        if not hopeless:
            found += self.best_fixed(evaluations)
        return sorted(found, key=lambda each: self.mean(each, self.task.searched))

    def best_fixed(self, evaluations: int) -> list[Trial]:
        """Successive halving: all on few seeds, the best of them on more. Empty if there is none."""
        left = fixed_trials(self.net, self.fits, self.task.solvers, evaluations)
        for most, share in ROUNDS:
            seeds = self.task.searched[: max(1, round(share * len(self.task.searched)))]
            left = sorted(left, key=lambda each: self.mean(each, seeds))[:most]
        return left

    def mean(self, trial: Trial, seeds: Sequence[int]) -> float:
        found = statistics.fmean(self.measured.errors(trial, self.precision, seeds))
        self.tick()
        return found


def tuned_sampler(task: Task, found: Found, truth: Truth, apart: float, name: str) -> TunedSampler:
    """What the file says. apart: see `Truth.apart`."""
    assert found.held_out is not None
    error = {"bound": task.max_error, **found.held_out._asdict(), "images": len(task.held_out)}
    return TunedSampler(
        settings=found.trial.settings,
        evaluations=found.trial.evaluations,
        precision=found.precision,
        error={**error, "seeds": ranges(task.held_out)},
        truth={
            "solver": "heun",
            "num_steps": truth.steps,
            "precision": truth.precision,
            "converged": apart,
            "converged_seeds": ranges(task.seeds[:COMPARED]),
        },
        checkpoint={"name": name, "digest": truth.digest},
        versions={"edm_fast": __version__, "torch": str(torch.__version__), "device": truth.device.type},
    )


def ranges(seeds: Sequence[int]) -> str:
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
    save_png(path, arrange([np.concatenate(row, axis=1) for row in rows]), GRID)
