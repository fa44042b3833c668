"""tune: the cheapest sampler of a network that keeps a bound on the distance from the converged solution.

The truth is where the ODE takes the latents of each seed (see `_truth`). The error of a sampler on a seed is the RMS
difference of the two images in levels of 255. A bound is kept if the mean (or the median, or the 95th percentile) over
held-out seeds, which no choice was made on, keeps it with two standard errors to spare. Where a trajectory decides
between two images, every solver of few steps may end at the other one: a few such seeds make up much of a mean.
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
from edm_fast.sampling.solvers._tuned import TunedSampler

# of the fixed samplers for a number of evaluations: how many stay after each round, and on how many searched seeds
ROUNDS = ((12, 1 / 32), (3, 1 / 4), (1, 1.0))
HOPELESS = 1.4  # times the bound: where the fitted sampler errs more, it is not improved, and no fixed one keeps it
PAIRS, CONTRAST = 16, 16  # pictures, and how many times the difference is made larger in them
SIGMA = 0.5  # of timed evaluations


STATISTICS = {"mean": math.nan, "median": 0.5, "p95": 0.95}  # and which quantile it is


class Errors(NamedTuple):
    """Of a sampler on some seeds, in levels of 255."""

    mean: float
    se: float  # standard error of the mean
    median: float
    p95: float
    worst: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors:
        deviation = statistics.stdev(errors) if len(errors) > 1 else math.inf
        median, p95 = (float(np.quantile(errors, q)) for q in (0.5, 0.95))
        return cls(statistics.fmean(errors), deviation / math.sqrt(len(errors)), median, p95, max(errors))


def upper(errors: Sequence[float], statistic: str) -> float:
    """A bound on the mean or a quantile of all seeds, two standard errors above that of these; a quantile's is the
    error of the rank n q + 2 sqrt(n q (1 - q)), infinite if there are not as many."""
    if statistic == "mean":
        found = Errors.of(errors)
        return found.mean + 2 * found.se
    q, n = STATISTICS[statistic], len(errors)
    rank = math.ceil(n * q + 2 * math.sqrt(n * q * (1 - q)))
    return sorted(errors)[rank - 1] if rank <= n else math.inf


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is searched for."""

    max_error: float
    evaluations: Sequence[int]
    seeds: Sequence[int]
    solvers: Sequence[str]
    precisions: Sequence[str]  # from the most exact on
    statistic: str = "mean"  # of the errors, that the bound is for

    def __post_init__(self) -> None:
        check_solvers(self.solvers)
        if len(self.searched) < 2 or len(self.held_out) < 2:
            raise UserError(f"{len(set(self.seeds))} seeds; expected at least 4, half of them held out")

    @property
    def held_out(self) -> list[int]:
        """The first half of the seeds."""
        seeds = list(dict.fromkeys(self.seeds))
        return seeds[: len(seeds) // 2]

    @property
    def searched(self) -> list[int]:
        return list(dict.fromkeys(self.seeds))[len(self.held_out) :]


class Measured:
    """What was computed of samplers, kept in a file: a search that was stopped goes on from there.

    The errors of a trial are named by its coefficients, so that a solver that computes something else is measured anew.
    """

    def __init__(self, truth: Truth, networks: dict[str, Any], fits: Fits | None = None) -> None:
        self.truth, self.networks, self.fits = truth, networks, fits
        self.path = truth.path.with_suffix(".json")
        self._stored: dict[str, Any] = {
            "versions": {"edm_fast": __version__, "torch": str(torch.__version__)},
            "errors": {},  # by trial and precision, then seed
            "fitted": {},  # by precision, evaluations, seeds and the error from which on they are improved
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
            fits = self.fits if self.fits is not None and {*missing} <= {*self.fits.seeds} else None
            truth = self.truth.images(missing) if fits is None else fits.truth_of(missing).cpu()
            found = error_levels(images.where(finite[:, None, None, None], 0), truth)
            # an image that is not finite is farther away than any other
            known.update(zip(map(str, missing), found.where(finite, 255.0).tolist(), strict=True))
            self._store()
        return [known[str(seed)] for seed in seeds]

    def of_file(self, tuned: TunedSampler, seeds: Sequence[int]) -> list[float]:
        """As `errors`, of a sampler file."""
        method = {name: value for name, value in tuned.settings.items() if name != "levels"}
        levels = {"levels": tuned.settings["levels"]}
        return self.errors(trial(self.networks[tuned.precision], method, "listed", levels), tuned.precision, seeds)

    def fitted(self, precision: str, evaluations: int, worth: float) -> Fitted:
        assert self.fits is not None
        key = f"{precision} {evaluations} {ranges(self.fits.seeds)} {worth:g}"
        if key not in self._stored["fitted"]:
            self._stored["fitted"][key] = self.fits.best(evaluations, worth)
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

    def __init__(self, task: Wanted, measured: Measured, tick: Callable[[], Any] = lambda: None) -> None:
        self.task, self.measured, self.tick = task, measured, tick
        self.precision = task.precisions[0]  # the most exact one decides on the samplers, and so once for all
        self.net = measured.networks[self.precision]
        self.fits = measured.fits = Fits(self.net, task.searched)

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
        task = self.task
        searched, held_out, kept = Errors.of(self.measured.errors(trial, precision, task.searched)), None, False
        if getattr(searched, task.statistic) <= task.max_error:
            errors = self.measured.errors(trial, precision, task.held_out)
            held_out, kept = Errors.of(errors), upper(errors, task.statistic) <= task.max_error
        return Found(trial, precision, searched, held_out, kept)

    def best(self, evaluations: int) -> list[Trial]:
        """The fitted sampler and the best of the others, the better one first."""
        found, hopeless = [], False
        if FITTED in self.task.solvers:
            bound = HOPELESS * self.task.max_error
            fitted = fitted_trial(self.net, self.measured.fitted(self.precision, evaluations, bound))
            hopeless = statistics.median(self.errors(fitted, self.task.searched)) > bound
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

    def errors(self, trial: Trial, seeds: Sequence[int]) -> list[float]:
        found = self.measured.errors(trial, self.precision, seeds)
        self.tick()
        return found

    def mean(self, trial: Trial, seeds: Sequence[int]) -> float:
        return statistics.fmean(self.errors(trial, seeds))


def tuned_sampler(task: Wanted, found: Found, truth: Truth, apart: float, name: str) -> TunedSampler:
    """What the file says. apart: see `Truth.apart`."""
    assert found.held_out is not None
    error = {
        "bound": task.max_error,
        "statistic": task.statistic,
        **found.held_out._asdict(),
        "images": len(task.held_out),
    }
    return TunedSampler(
        settings=found.trial.settings,
        evaluations=found.trial.evaluations,
        precision=found.precision,
        error={**error, "seeds": ranges(task.held_out)},
        truth={
            "solver": truth.solver,
            "num_steps": truth.steps,
            "precision": truth.precision,
            "converged": apart,
            "converged_seeds": ranges(task.held_out[:COMPARED]),
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


def save_pairs(path: Path, task: Wanted, found: Found, measured: Measured) -> None:
    """A picture of held-out seeds: the sampler's image, the truth, and grey with 16 times their difference."""
    seeds = task.held_out[:PAIRS]
    ours, truth = measured.draw(found.trial, found.precision, seeds).clamp(-1, 1), measured.truth.images(seeds)
    difference = CONTRAST * (ours - truth.clamp(-1, 1))
    rows = zip(*(to_uint8(images) for images in (ours, truth, difference)))
    save_png(path, arrange([np.concatenate(row, axis=1) for row in rows]), GRID)
