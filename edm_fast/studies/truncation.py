"""What few evaluations cost: the distance from the ODE's solution, for every solver and grid, and for the paper's
choices of time steps, schedule and scaling (Karras et al. 2022, Fig. 2 and 3)."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.evaluation.accuracy import converged, error_levels
from edm_fast.sampling import Solver, ablation_sampler, run, sample, seed_inputs
from edm_fast.sampling.levels import LEVELS
from edm_fast.sampling.solvers import registry
from edm_fast.sampling.solvers._gits import cheapest_jumps, jump_costs, trajectories
from edm_fast.studies._study import Chart, Entry, Grid, Option, Session, Study

KARRAS, GITS = "karras", "gits"
ORDERS = (2, 3, 4)
WITHOUT_NOISE: dict[str, Any] = {
    "eta": 0.0,
    "tau": 0.0,
    "phi": 1.0,
}  # options that turn a stochastic solver into an ODE's
EVERY_GRID = 15  # evaluations up to which all grids are measured, above it Karras' alone
WARM_UP = range(1_000_000, 1_000_016)  # seeds for GITS
TEACHER = {"solver": "ipndm", "order": 4, "num_steps": 60, "ends": "sigma_min"}
SHOWN = 9  # solvers in a chart
# (chart, solvers, choices of the ablation sampler)
ABLATIONS: tuple[tuple[str, tuple[str, ...], tuple[dict[str, Any], ...]], ...] = (
    ("time steps", ("euler", "heun"), tuple({"discretization": name} for name in ("vp", "ve", "iddpm", "edm"))),
    (
        "schedule and scaling",
        ("euler", "heun"),
        tuple(
            {"schedule": schedule, "scaling": scaling}
            for schedule, scaling in (("vp", "vp"), ("vp", "none"), ("ve", "none"), ("linear", "none"))
        ),
    ),
    ("rho", ("heun",), tuple({"rho": float(rho)} for rho in (3, 5, 7, 9, 12))),
)
PUBLISHED = (  # FID of 50,000 images, CIFAR-10 unconditional, EDM's VP checkpoint, by 5, 6, 8 and 10 evaluations
    ("euler, karras", 49.66, 35.62, 22.32, 15.69),
    ("heun, karras", None, 99.74, 38.06, 15.93),
    ("dpm2, karras", None, 60.00, 10.30, 5.01),
    ("dpmpp 3, logsnr", 24.97, 11.99, 4.54, 3.00),
    ("unipc 3, logsnr", 23.98, 11.14, 3.99, 2.89),
    ("deis_tab 4, time_uniform", 14.39, 9.40, 5.55, 4.09),
    ("ipndm 4, karras", 13.59, 7.05, 3.69, 2.77),
    ("ipndm 4, gits", 8.38, 4.88, 3.24, 2.49),
)


class Limits:
    """The solution of each seed, and the levels that GITS finds."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.truth = converged(session.fast, session.seeds, batch=session.batch, device=session.device)

    @functools.cached_property
    def _costs(self) -> tuple[list[float], Tensor]:
        latents, labels, _ = seed_inputs(self._session.net, WARM_UP, device=self._session.device)
        levels, states, slopes = trajectories(self._session.fast, latents, labels, **TEACHER)
        return levels, jump_costs(levels, states, slopes)

    def gits(self, steps: int) -> list[float]:
        """steps levels, then 0."""
        levels, costs = self._costs
        return [*(levels[i] for i in cheapest_jumps(costs, steps)[:-1]), 0.0]


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, keywords of `edm_fast.sample`) of every solver without noise, of its orders."""
    for solver, family in sorted(registry().items()):
        known = inspect.signature(family).parameters
        options = {name: value for name, value in WITHOUT_NOISE.items() if name in known}
        for order in ORDERS if "order" in known else (None,):
            settings = {"solver": solver, **({} if order is None else {"order": order}), **options}
            yield " ".join([solver, *([] if order is None else [str(order)])]), settings


def points(session: Session) -> list[Entry]:
    numbers = session.options["evaluations"]
    return [*_solver_points(session, numbers), *_ablation_points(numbers)]


def _solver_points(session: Session, numbers: Sequence[int]) -> Iterator[Entry]:
    """Those that spend as many evaluations, draw no noise, and do not what an earlier one does.

    All of this is found on one grid, as the others take time to make.
    """
    chosen = session.options["solvers"]
    if unknown := [name for name in chosen or () if name not in registry()]:
        raise UserError(f"solver {unknown[0]!r} is unknown; expected some of {', '.join(sorted(registry()))}")
    known = set()
    for nfe, (name, settings) in itertools.product(numbers, variants()):
        if chosen and settings["solver"] not in chosen:
            continue
        try:
            made = _solver(session, {**settings, "nfe": nfe})
        except UserError:  # no such order, or it cannot spend this number
            continue
        outcome = nfe, _outcome(made)
        if not _draws_noise(made) and outcome not in known:
            known.add(outcome)
            for grid in grids() if nfe <= EVERY_GRID else (KARRAS,):
                yield {"part": "solvers", "name": name, "grid": grid, "evaluations": nfe, "settings": settings}


@functools.cache
def grids() -> tuple[str, ...]:
    """Names of levels, each shape once."""
    shapes: dict[Any, str] = {}
    for name, levels in LEVELS.items():
        shapes.setdefault(tuple(round(level, 9) for level in levels(4, 0.002, 80.0).tolist()), name)
    return (*shapes.values(), GITS)


def _outcome(made: Solver) -> float:
    """Where a solver takes one number under a denoiser that is not linear: the same place, the same solver."""
    x = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    found = run(lambda x, sigma, labels: torch.tanh(x) / (1 + sigma), x, made, None, torch.zeros_like)
    return round(found.item(), 9)


def _solver(session: Session, settings: Entry) -> Solver:
    return sample.solver(session.net, None, **settings)  # type: ignore[attr-defined]


def _draws_noise(made: Solver) -> bool:
    """Whether noise of more than a rounding error enters."""
    return any(
        abs(numbers.get("c", 0.0)) > 1e-6 * level
        for step, level in zip(made.steps, made.levels)
        for numbers in step.coefficients()
    )


def _ablation_points(numbers: Sequence[int]) -> Iterator[Entry]:
    for part, solvers, choices in ABLATIONS:
        for solver, choice, nfe in itertools.product(solvers, choices, numbers):
            if solver == "heun" and nfe % 2 == 0:
                continue
            steps = (nfe + 1) // 2 if solver == "heun" else nfe
            name = ", ".join([solver, *(_plain(value) for value in choice.values())])
            settings = {"solver": solver, "num_steps": steps, **choice}
            yield {"part": part, "name": name, "evaluations": nfe, "settings": settings}


def _plain(value: Any) -> str:
    return f"rho {value:g}" if isinstance(value, float) else str(value)


def measure(session: Session, point: Entry) -> Entry:
    settings = point["settings"]
    if point["part"] != "solvers":
        images = session.draw(ablation_sampler, sigma_min=0.002, sigma_max=80, **settings)
    else:
        made = _solver(session, {**settings, "levels": KARRAS, "nfe": point["evaluations"]})
        if point["grid"] == GITS:
            made = _solver(session, {**settings, "levels": session.shared.gits(len(made.steps))})
        elif point["grid"] != KARRAS:
            made = _solver(session, {**settings, "levels": point["grid"], "nfe": point["evaluations"]})
        images = session.draw(sample, solver=made)
    errors = error_levels(images, session.shared.truth)
    return {"mean": errors.mean().item(), "worst": errors.max().item(), "errors": errors.tolist()}


def show(rows: Sequence[Entry], session: Session) -> list[Chart | Grid]:
    solvers = [row for row in rows if row["part"] == "solvers"]
    few = min((row["evaluations"] for row in solvers), key=lambda n: abs(n - 10), default=10)
    at_few = sorted((row for row in solvers if row["evaluations"] == few), key=lambda row: row["mean"])
    names = [*dict.fromkeys(row["name"] for row in at_few)]
    chosen = dict.fromkeys([*names[: SHOWN - 2], "heun", "euler"])
    return [
        _lines(
            "Solvers, each on its best grid", solvers, "name", chosen, f"The best at {few} evaluations, and two more."
        ),
        _lines("Noise levels, each with its best solver", solvers, "grid", grids()),
        *_tables(solvers, names, few),
        *(
            _lines(f"The paper's choice of {part}", [row for row in rows if row["part"] == part], "name")
            for part, *_ in ABLATIONS
        ),
        Grid(
            "Published FID of the same solvers",
            ["solver and levels", "5 evaluations", "6", "8", "10"],
            PUBLISHED,
            "Quoted, not measured here: CIFAR-10 without classes, EDM's checkpoint, 50,000 images, from the tables of "
            "diff-sampler and of GITS (Chen et al. 2024).",
        ),
    ]


def _lines(title: str, rows: Sequence[Entry], key: str, names: Iterable[str] = (), note: str = "") -> Chart:
    """The least error by evaluations, for each value of a key."""
    names = [*names] or [*dict.fromkeys(row[key] for row in rows)]
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        mine = [row for row in rows if row[key] == name]
        numbers = sorted({row["evaluations"] for row in mine})
        least = [(n, min(row["mean"] for row in mine if row["evaluations"] == n)) for n in numbers]
        if least:
            lines[name] = least
    return Chart(title, "evaluations of the network", "error, levels of 255", lines, "xy", note)


def _tables(solvers: Sequence[Entry], names: Sequence[str], few: int) -> list[Grid]:
    """Every solver on every grid at `few` evaluations, and the best at each number of them."""
    found = {(row["name"], row["grid"]): row["mean"] for row in solvers if row["evaluations"] == few}
    best = []
    for n in sorted({row["evaluations"] for row in solvers}):
        row = min((row for row in solvers if row["evaluations"] == n), key=lambda row: row["mean"])
        heun = [r["mean"] for r in solvers if (r["name"], r["grid"], r["evaluations"]) == ("heun", KARRAS, n)]
        best.append([n, row["name"], row["grid"], row["mean"], row["worst"], heun[0] if heun else None])
    return [
        Grid(
            "The best of each number", ["evaluations", "solver", "levels", "mean", "worst seed", "Heun, karras"], best
        ),
        Grid(
            f"Every solver on every grid, {few} evaluations",
            ["solver", *grids()],
            [[name, *(found.get((name, grid)) for grid in grids())] for name in names],
            "Mean error in levels of 255; the best of each row is marked.",
            best=True,
        ),
    ]


STUDY = Study(
    name="truncation",
    summary="What few evaluations cost, by solver and noise levels",
    words=(
        "Every image has a limit: where the probability-flow ODE takes the latents of its seed. The error is how far "
        "an image with few evaluations is from it (256 steps of Heun's method), as the root-mean-square difference in "
        "levels of 255, seed by seed. It needs no data set and no judge, and says nothing on the network itself.",
        "Stochastic solvers enter without their noise where they have such a form (eta, tau or phi turned off); those "
        "without one are left out, since fresh noise leads to another image.",
        "The charts of the paper's choices use its ablation sampler between the same two noise levels, 80 and 0.002, "
        "so that all of them have the same limit.",
    ),
    prepare=Limits,
    points=points,
    measure=measure,
    show=show,
    options={
        "evaluations": Option("ints", [5, 7, 10, 15, 23, 35], "Of the network for an image."),
        "solvers": Option("words", None, "Names of edm-fast generate --solver.  [default: all]"),
    },
    seeds="0-7",
)
