"""What `edm-fast tune` tries: solver, order and noise levels for a number of evaluations."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from edm_fast.errors import UserError, near
from edm_fast.evaluation.tuning._fit import Fits, Fitted
from edm_fast.sampling import sample

# deterministic solvers with the orders and options worth trying; "heun" and "dpm2" evaluate twice a step
SOLVERS: dict[str, tuple[dict[str, Any], ...]] = {
    "euler": ({},),
    "heun": ({},),
    "dpm2": ({},),
    "ipndm": ({"order": 2}, {"order": 3}, {"order": 4}),
    "adams": ({"order": 4},),
    "deis_tab": ({"order": 4},),
    "dpmpp": ({"order": 2}, {"order": 3, "exact": True}),
    "exp_ab_eps": ({"order": 3},),
    "unipc": ({"order": 2}, {"order": 3}),
}
FITTED = "fitted"  # levels and weights fitted to the network, see _fit
TWICE = ("heun", "dpm2")
GRIDS: dict[str, dict[str, Any]] = {
    "karras": {"levels": "karras"},
    "logsnr": {"levels": "logsnr"},
    "time_uniform 2": {"levels": "time_uniform"},
    "time_uniform 1": {"levels": "time_uniform", "rho": 1},
    "optimised": {"levels": "optimised"},
}
ENDS = ("zero", "sigma_min")
DISCOUNTS = (1.0, 1.05, 1.15)  # of GITS, whose published one is the last


@dataclasses.dataclass(frozen=True)
class Trial:
    """Keywords of `edm_fast.sample` with the levels as numbers, and how a table calls these."""

    settings: dict[str, Any]
    grid: str
    evaluations: int
    key: str  # of the steps: another version of a solver that computes something else has another

    def __str__(self) -> str:
        named = {"solver", "levels", "weights"}
        options = [f"{name}={value}" for name, value in self.settings.items() if name not in named]
        name = FITTED if "weights" in self.settings else self.settings["solver"]
        return f"{' '.join([name, *options]):24s} {self.grid:20s}"


def trial(net: Any, method: dict[str, Any], grid: str, levels: dict[str, Any]) -> Trial:
    """levels: keywords of `edm_fast.sample` that decide the levels. UserError where they do not fit the method."""
    made = sample.solver(net, None, **method, **levels)  # type: ignore[attr-defined]
    listed = [float(level) for level in made.levels]
    key = hashlib.sha256(repr((listed, made.steps)).encode()).hexdigest()[:24]
    return Trial({**method, "levels": listed}, grid, made.evaluations, key)


def check_solvers(names: Sequence[str]) -> None:
    known = [FITTED, *SOLVERS]
    for name in names:
        if name not in known:
            raise UserError(f"solver {name!r} is not searched{near(name, known)}; expected some of {', '.join(known)}")


def fixed_trials(net: Any, fits: Fits, solvers: Sequence[str], evaluations: int) -> list[Trial]:
    """All solvers on all grids that cost so many evaluations; some cannot spend some numbers."""
    found: dict[str, Trial] = {}
    for solver in (name for name in solvers if name != FITTED):
        for grid, levels in _grids(fits, solver, evaluations):
            for options in SOLVERS[solver]:
                try:
                    made = trial(net, {"solver": solver, **options}, grid, levels)
                except UserError:  # no such number of evaluations, or too few levels for a grid
                    continue
                if made.evaluations == evaluations:
                    found.setdefault(made.key, made)
    return [*found.values()]


def _grids(fits: Fits, solver: str, n: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for grid, settings in GRIDS.items():
        for ends in ENDS:
            yield f"{grid}, {ends}", {**settings, "nfe": n, "ends": ends}
    steps = (n + 1) // 2 if solver in TWICE else n
    if 1 < steps:
        for discount in DISCOUNTS:
            yield f"gits {discount}, zero", {"levels": fits.sigmas(fits.levels(steps, discount))}


def fitted_trial(net: Any, fitted: Fitted) -> Trial:
    return trial(net, {"solver": "listed", "weights": fitted.weights}, "gits", {"levels": fitted.levels})
