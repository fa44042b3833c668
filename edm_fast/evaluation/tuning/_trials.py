"""What `edm-fast tune` tries: solver, order and noise levels for a number of evaluations."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from edm_fast.errors import UserError, near
from edm_fast.sampling import sample, sample_seeds
from edm_fast.sampling.solvers import _gits

# deterministic solvers with the orders and options worth trying; "heun" and "dpm2" evaluate twice a step
SOLVERS: dict[str, tuple[dict[str, Any], ...]] = {
    "euler": ({},),
    "heun": ({},),
    "dpm2": ({},),
    "ipndm": ({"order": 2}, {"order": 3}, {"order": 4}),
    "adams": ({"order": 3}, {"order": 4}),
    "deis_tab": ({"order": 3}, {"order": 4}),
    "dpmpp": ({"order": 2}, {"order": 3, "exact": True}),
    "exp_ab_eps": ({"order": 2}, {"order": 3}, {"order": 4}),
    "exp_ab_x": ({"order": 3},),
    "unipc": ({"order": 2}, {"order": 3}, {"order": 3, "lower_order_final": False}),
}
TWICE = ("heun", "dpm2")
GRIDS: dict[str, dict[str, Any]] = {
    "karras": {"levels": "karras"},
    "karras 5": {"levels": "karras", "rho": 5},
    "karras 10": {"levels": "karras", "rho": 10},
    "logsnr": {"levels": "logsnr"},
    "time_uniform 2": {"levels": "time_uniform"},
    "time_uniform 1": {"levels": "time_uniform", "rho": 1},
    "optimised": {"levels": "optimised"},
}
ENDS = ("zero", "denoised")
DISCOUNTS = (1.0, 1.15, 1.3)
TEACHER = {"solver": "ipndm", "order": 4, "num_steps": 60, "ends": "sigma_min"}


@dataclasses.dataclass(frozen=True)
class Trial:
    """Keywords of `edm_fast.sample` with the levels as numbers, and how a table calls these."""

    settings: dict[str, Any]
    grid: str
    evaluations: int
    key: str  # of the steps: another version of a solver that computes something else has another

    def __str__(self) -> str:
        named = {"solver", "levels", "ends"}
        options = [f"{name}={value}" for name, value in self.settings.items() if name not in named]
        return f"{' '.join([self.settings['solver'], *options]):34s} {self.grid}"


def check_solvers(names: Sequence[str]) -> None:
    for name in names:
        if name not in SOLVERS:
            raise UserError(
                f"solver {name!r} is not searched{near(name, SOLVERS)}; expected some of {', '.join(SOLVERS)}"
            )


class Trials:
    """The trials of a network. latents (N, C, R, R) and labels of `seeds` are the warm-up of GITS."""

    def __init__(self, net: Any, seeds: Sequence[int], solvers: Sequence[str] = tuple(SOLVERS)) -> None:
        check_solvers(solvers)
        self.net, self.seeds, self.solvers = net, seeds, solvers

    @functools.cached_property
    def _jumps(self) -> tuple[list[float], Tensor]:
        """Levels of the GITS teacher, and what each jump between them costs. Chen et al. 2024."""
        found: list[Any] = []

        def teach(net: Any, latents: Tensor, labels: Tensor | None, randn_like: Any) -> Tensor:
            found.append(_gits.trajectories(net, latents, labels, **TEACHER))
            return latents

        sample_seeds(self.net, teach, self.seeds, device=next(self.net.parameters()).device)
        levels, states, slopes = found[0]
        return levels, _gits.jump_costs(levels, states, slopes)

    def _gits_levels(self, jumps: int, discount: float) -> list[float]:
        levels, costs = self._jumps
        return [levels[i] for i in _gits.cheapest_jumps(costs, jumps, discount)]

    def of(self, evaluations: int) -> list[Trial]:
        """All that cost so many evaluations; some solvers cannot spend some numbers."""
        found: dict[str, Trial] = {}
        for solver in self.solvers:
            for options in SOLVERS[solver]:
                for grid, settings in self._grids(solver, options, evaluations):
                    try:
                        trial = self._trial({"solver": solver, **options}, grid, settings)
                    except UserError:  # no such number of evaluations, or too few levels for a grid
                        continue
                    if trial.evaluations == evaluations:
                        found.setdefault(trial.key, trial)
        return [*found.values()]

    def _grids(self, solver: str, options: dict[str, Any], n: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for grid, settings in GRIDS.items():
            for ends in ENDS:
                yield f"{grid}, {ends}", {**settings, "nfe": n, "ends": ends}
        steps = (n + 1) // 2 if solver in TWICE else n
        if 1 < steps < TEACHER["num_steps"]:
            for discount in DISCOUNTS:
                yield f"gits {discount}, zero", {"levels": [*self._gits_levels(steps, discount)[:-1], 0.0]}

    def _trial(self, method: dict[str, Any], grid: str, settings: dict[str, Any]) -> Trial:
        made = sample.solver(self.net, None, **method, **settings)  # type: ignore[attr-defined]
        ends = {"ends": "denoised"} if settings.get("ends") == "denoised" else {}
        levels = [float(level) for level in made.levels]
        listed = {**method, "levels": levels[:-1] if ends else levels, **ends}
        key = hashlib.sha256(repr((levels, made.steps)).encode()).hexdigest()[:24]
        return Trial(listed, grid, made.evaluations, key)
