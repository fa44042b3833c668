"""Solvers as JSON files: any list of levels and weights, such as learned ones. The format is told in __init__.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edm_fast.errors import UserError, UserOSError, near, one_line
from edm_fast.files import atomic_write, user_path
from edm_fast.sampling import _arguments, loop

Part = tuple[loop.Stage, list[float]]
KINDS: dict[Any, Callable[..., Part]] = {"slope": loop.slope, "data": loop.data, "state": loop.state, None: loop.move}
# which coefficients a stage of each kind may have besides its weights
MOVES = ("a", "h", "c")
NAMES: dict[Any, tuple[str, ...]] = {
    "slope": ("sigma", "s", "p", "q", "t", *MOVES),
    "data": ("sigma", "s", *MOVES),
    "state": MOVES,
    None: MOVES,
}
MAX_BYTES = 1 << 26
MAX_DRAWS = 100
FLOAT32 = 1e-6  # relative; a level may have been kept in float32


def load_solver(path: str | os.PathLike[str]) -> loop.Solver:
    """The steps in a file, for `sample(net, latents, solver=...)`. UserError for a file that is not in the format."""
    name = os.fsdecode(path)
    try:
        with open(user_path(path), "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserOSError(f"cannot read {name}: {one_line(error)}") from None
    try:
        if len(text) > MAX_BYTES:
            raise UserError(f"it has more than {MAX_BYTES >> 20} MB")
        return _solver(_object("it", json.loads(text, object_pairs_hook=_once)))
    except UserError as error:
        raise UserError(f"{name} is no solver: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is no solver: {one_line(error)}; expected JSON with levels and weights") from None


def save_solver(solver: loop.Solver, path: str | os.PathLike[str]) -> None:
    """Write the steps of a run, such as sample.solver(net, None, ...) returns, in the full form."""
    if solver.limit is not None:
        raise UserError("a solver that limits D (dynamic thresholding) is more than levels and weights")
    steps = []
    for step in solver.steps:
        unused = [{"keeps": None, "c": 0.0, "draw": step.draws - 1}] * (step.draws > loop.used_draws(step.stages))
        steps.append([*unused, *(_described(*pair) for pair in zip(step.stages, step.coefficients()))])
    start = {} if solver.start is None else {"start": solver.start}
    with atomic_write(path, "w", kind="json") as file:
        json.dump({"levels": [*solver.levels], **start, "steps": steps}, file)


def _described(stage: loop.Stage, numbers: dict[str, Any]) -> dict[str, Any]:
    weights = {"weights": numbers.pop("weights")} if stage.weights else {}
    draw = {"draw": stage.draw} if stage.draw else {}
    return {"keeps": stage.keeps, **numbers, **weights, **draw, **({"rebase": True} if stage.rebase else {})}


def check_levels(net: Any, solver: loop.Solver) -> None:
    """UserError for levels that are not the network's."""
    low, high = (_arguments.number(f"net.{name}", getattr(net, name)) for name in ("sigma_min", "sigma_max"))
    for step in solver.steps:
        for sigma in (numbers["sigma"] for numbers in step.coefficients() if "sigma" in numbers):
            if not low * (1 - _arguments.ROUNDING) <= sigma <= high * (1 + _arguments.ROUNDING):
                raise UserError(f"solver evaluates at noise level {sigma:g}; the network has {low:g} to {high:g}")
    levels = torch.tensor([sigma for sigma in solver.levels if sigma > 0], dtype=torch.float64, device="cpu")
    for sigma, nearest in zip(levels.tolist(), loop.round_sigma(net, levels).tolist()):
        if abs(nearest - sigma) > FLOAT32 * sigma:
            raise UserError(f"solver has the noise level {sigma:.9g}; the nearest of the network's is {nearest:.9g}")


def _solver(document: dict[str, Any]) -> loop.Solver:
    short = "weights" in document
    if not short and "steps" not in document:
        raise UserError("it has neither weights nor steps")
    _expect_keys(
        "it", document, ("levels", "start", "comment", *(("keeps", "weights", "a", "h") if short else ("steps",)))
    )
    levels = _numbers("levels", document.get("levels"))
    count = len(levels) - 1
    if not 1 <= count <= _arguments.MAX_STEPS:
        raise UserError(f"levels has {len(levels)} numbers; expected 2 to {_arguments.MAX_STEPS + 1:,}")
    steps = short_form(document, levels) if short else _full_form(document.get("steps"), levels)
    for i, (sigma, sigma_next, step) in enumerate(zip(levels, levels[1:], steps)):
        rises = sigma_next >= sigma and any(stage.evaluates for stage in step.stages)
        if rises or not sigma > 0 or sigma_next < 0:
            raise UserError(f"levels {i} and {i + 1} are {sigma:g} and {sigma_next:g}; expected falling levels")
    start = document.get("start")
    return loop.Solver(levels, steps, start=None if start is None else _number("start", start))


def short_form(document: dict[str, Any], levels: Sequence[float]) -> list[loop.Step]:
    """The steps of "keeps", "weights", and "a" and "h" where there are any; also of the solver `listed`."""
    keeps = document.get("keeps")
    if keeps not in ("slope", "data"):
        raise UserError(f'keeps is {_shown(keeps)}; expected "slope" or "data"')
    count = len(levels) - 1
    rows = _list("weights", document["weights"], count, "lists, one for each step")
    factors = {name: _numbers(name, document[name], count) for name in ("a", "h") if name in document}
    steps = []
    for i, (sigma, row) in enumerate(zip(levels, rows)):
        weights = _numbers(f"weights[{i}]", row)
        if not 1 <= len(weights) <= i + 1:
            raise UserError(f"weights[{i}] has {len(weights)} numbers; expected 1 to {i + 1}, the history of step {i}")
        clock = {"t": sigma} if keeps == "slope" else {}
        steps.append(loop.step(KINDS[keeps](sigma, weights, **clock, **{name: f[i] for name, f in factors.items()})))
    return steps


def _full_form(document: Any, levels: Sequence[float]) -> list[loop.Step]:
    steps, history = [], 0
    for i, stages in enumerate(_list("steps", document, len(levels) - 1, "lists of stages, one for each step")):
        parts = []
        for j, fields in enumerate(_list(f"steps[{i}]", stages, None, "stages")):
            where = f"steps[{i}][{j}]"
            parts.append(_stage(where, _object(where, fields), levels[i] if j == 0 else None))
            stage = parts[-1][0]
            history += stage.keeps is not None
            if stage.terms > history:
                raise UserError(f"{where} has {stage.terms} weights; expected at most {history}, the history by then")
        if not parts:
            raise UserError(f"steps[{i}] is empty; expected one stage or more")
        steps.append(loop.step(*parts))
    return steps


def _stage(where: str, fields: dict[str, Any], level: float | None) -> Part:
    """level: sigma of an evaluation that does not say it."""
    keeps = fields.get("keeps")
    if "keeps" not in fields or not isinstance(keeps, (str, type(None))) or keeps not in KINDS:
        raise UserError(f'{where}.keeps is {_shown(keeps)}; expected "slope", "data", "state" or null')
    _expect_keys(where, fields, ("keeps", "weights", "draw", "rebase", *NAMES[keeps]))
    numbers = {name: _number(f"{where}.{name}", fields[name]) for name in loop.COEFFICIENTS if name in fields}
    if "sigma" in NAMES[keeps] and "sigma" not in numbers:
        if level is None:
            raise UserError(f"{where} has no sigma; expected the noise level of its evaluation")
        numbers["sigma"] = level
    if keeps == "slope" and not numbers.keys() & {"p", "q", "t"}:
        numbers["t"] = numbers["sigma"]
    if numbers.get("t") == 0 or numbers.get("s") == 0:
        raise UserError(f"{where} divides by 0; expected t and s other than 0")
    draw, rebase = fields.get("draw", 0), fields.get("rebase", False)
    if type(draw) is not int or not 0 <= draw < MAX_DRAWS or ("draw" in fields and "c" not in fields):
        raise UserError(
            f"{where}.draw is {_shown(draw)}; expected a number from 0 to {MAX_DRAWS - 1}, and c, its factor"
        )
    if not isinstance(rebase, bool) or (rebase and keeps is not None):
        raise UserError(
            f"{where}.rebase is {_shown(rebase)}; expected true or false, and true only where keeps is null"
        )
    weights = _numbers(f"{where}.weights", fields.get("weights", []))
    return KINDS[keeps](weights=weights, draw=draw, **numbers, **({"rebase": rebase} if keeps is None else {}))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(f"the key {_shown(name)} occurs twice in one object")
        found[name] = value
    return found


def _expect_keys(where: str, fields: dict[str, Any], known: Sequence[str]) -> None:
    for name in fields:
        if name not in known:
            raise UserError(f"{where} has the key {_shown(name)}{near(name, known)}; expected {', '.join(known)}")


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_shown(value)}; expected an object")
    return value


def _list(where: str, value: Any, length: int | None, of: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        found = f"has {len(value)} entries" if isinstance(value, (list, tuple)) else f"is {_shown(value)}"
        raise UserError(f"{where} {found}; expected {'a list of' if length is None else length} {of}")
    return value


def _numbers(where: str, value: Any, length: int | None = None) -> list[float]:
    return [_number(f"{where}[{i}]", number) for i, number in enumerate(_list(where, value, length, "numbers"))]


def _number(where: str, value: Any) -> float:
    """JSON has no NaN, but Python reads it; an integer may be too large for a float."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1.7e308:
        return float(value)
    raise UserError(f"{where} is {_shown(value)}; expected a finite number")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."
