"""edm_fast.sample: every solver by name, on any noise levels."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError, near
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.levels import LEVELS, has_rho
from edm_fast.sampling.solvers._file import check_levels, load_solver
from edm_fast.sampling.solvers._multistep import checked_choice
from edm_fast.sampling.solvers._registry import registry

ENDS = ("zero", "sigma_min", "denoised")


@loop.sampler
def sample(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: loop.RandnLike = torch.randn_like,
    *,
    solver: str | os.PathLike[str] | loop.Solver = "heun",
    order: int | None = None,
    num_steps: int | None = None,
    nfe: int | None = None,
    levels: str | Sequence[float] | Tensor | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    guidance: Guidance | None = None,
    callback: loop.Callback | None = None,
    ends: str | None = None,
    dtype: torch.dtype | None = None,
    **solver_options: Any,
) -> loop.Solver:
    """Denoise latents (N, C, H, W) ~ N(0, I) with any solver; returns float64 (or float32, by dtype), not clipped.

    solver: a name of `edm_fast.sampling.solvers`; `order` and `solver_options` are its own. Or the steps of a run, with
    which nothing but guidance, callback and dtype goes: what sample.solver(net, None, ...) returns, or a file
    FILE.json, see `edm_fast.sampling.solvers`.
    num_steps (18 if neither is set) or nfe: steps, or evaluations of `net` for an image, guidance apart.
    levels: a name of `edm_fast.sampling.levels` ("karras" if not set), cut to the network's own range; or the levels
    themselves, one more than steps, falling, the last may be 0.
    sigma_min, sigma_max: where levels by name end and begin; 0.002 and 80 if not set.
    ends: what follows levels by name. "zero" (if not set): num_steps levels, then 0. "sigma_min": num_steps + 1 levels.
    "denoised": these, and then x = D(x; sigma_min), one evaluation more.
    rho: of levels by name that have one; None: 7 for "karras", 2 for "time_uniform", 1 for "polyexponential".
    guidance: see `edm_fast.Guidance`. callback: see `edm_fast.sampling.run`. UserError for bad options.
    """
    _arguments.check_network(net)
    if nfe is not None and num_steps is not None:
        raise UserError(f"num_steps is {num_steps} and nfe is {nfe}; expected one of them")
    shape: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho, "ends": ends}
    if isinstance(solver, os.PathLike) or (isinstance(solver, str) and solver.endswith(".json")):
        solver = load_solver(solver)
        check_levels(net, solver)
    if isinstance(solver, loop.Solver):
        shape |= {"order": order, "num_steps": num_steps, "nfe": nfe, "levels": levels, **solver_options}
        _expect_unset("a solver that has its levels and steps", shape)
        return _typed(solver, dtype)
    method = on_levels(solver, order, solver_options)
    if levels is not None and not isinstance(levels, str):
        _expect_unset("a list of levels", shape)
        return _typed(_on_list(net, method, levels, num_steps, nfe), dtype)
    levels, ends = "karras" if levels is None else levels, "zero" if ends is None else ends
    if levels not in LEVELS:
        raise UserError(f"levels is {levels!r}; expected numbers or one of {', '.join(LEVELS)}")
    checked_choice("ends", ends, ENDS)
    lo, hi = _arguments.limits(net, 0.002 if sigma_min is None else sigma_min, 80 if sigma_max is None else sigma_max)
    exponent = {"rho": _arguments.positive("rho", rho)} if rho is not None else {}
    grid = functools.partial(LEVELS[levels], lo=lo, hi=hi, **(exponent if has_rho(levels) else {}))
    n = _arguments.steps(18 if num_steps is None else num_steps)
    if nfe is not None:
        n = _steps_of(nfe, solver, lambda n: _between(method, grid(n + (ends != "zero")), ends).evaluations)
    return _typed(_between(method, loop.round_sigma(net, grid(n + (ends != "zero"))), ends), dtype)


def _typed(solver: loop.Solver, dtype: torch.dtype | None) -> loop.Solver:
    return solver if dtype is None else dataclasses.replace(solver, dtype=dtype)


def _between(method: Callable[..., loop.Solver], grid: Tensor, ends: str) -> loop.Solver:
    """The solver on these levels, and what follows them."""
    made = method(_falling([*grid.tolist(), *([0.0] if ends == "zero" else [])]))
    return loop.denoised_at_the_end(made) if ends == "denoised" else made


def _expect_unset(what: str, settings: dict[str, Any]) -> None:
    """UserError for a setting that `what` leaves nothing to decide."""
    for name, value in settings.items():
        if value is not None:
            raise UserError(f"{name} does not go with {what}")


def on_levels(name: str, order: int | None, options: dict[str, Any]) -> Callable[..., loop.Solver]:
    """The solver as a function of levels. UserError for a name or an option that does not exist."""
    if name not in registry():
        raise UserError(
            f"solver is {name!r}{near(str(name), registry())}; expected one of {', '.join(sorted(registry()))}"
        )
    family = registry()[name]
    known = [p.name for p in inspect.signature(family).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = options if order is None else {**options, "order": order}
    for option in options:
        if option not in known:
            hint = near(option, {*known, *inspect.signature(sample).parameters} - {"order"})
            raise UserError(f"solver {name} has no option {option}{hint}; expected {', '.join(known) or 'none'}")
    return functools.partial(family, **options)


def _on_list(net: Any, method: Callable[..., loop.Solver], levels: Any, num_steps: Any, nfe: Any) -> loop.Solver:
    try:
        sigmas = torch.as_tensor(levels, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"levels is {str(levels)[:80]!r}; expected a name or numbers") from None
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise UserError(f"levels has shape {tuple(sigmas.shape)}; expected two numbers or more")
    inner = sigmas[:-1] if sigmas[-1] == 0 else sigmas
    _arguments.limits(net, inner[-1], sigmas[0]) if len(inner) > 1 else None
    own = float(net.sigma_min), float(net.sigma_max)
    low, high = own[0] * (1 - _arguments.ROUNDING), own[1] * (1 + _arguments.ROUNDING)
    if not bool(((inner >= low) & (inner <= high)).all()):
        raise UserError(f"levels go from {sigmas[0]:g} to {inner[-1]:g}; the network has {own[0]:g} to {own[1]:g}")
    made = method(_falling([*loop.round_sigma(net, inner).tolist(), *([0.0] if sigmas[-1] == 0 else [])]))
    for name, wanted, found in (("num_steps", num_steps, len(made.steps)), ("nfe", nfe, made.evaluations)):
        if wanted is not None and wanted != found:
            raise UserError(f"{name} is {wanted}; with these {len(sigmas)} levels it is {found}")
    return made


def _falling(levels: list[float]) -> list[float]:
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:])):
        if not sigma > sigma_next >= 0:
            raise UserError(f"levels {i} and {i + 1} are {sigma:g} and {sigma_next:g}; expected falling levels")
    return levels


def _steps_of(nfe: Any, solver: str, evaluations: Callable[[int], int]) -> int:
    """The number of steps that costs nfe evaluations. They grow with it, but for a few grids that restart less."""
    wanted = _arguments.steps(nfe, "nfe")
    n = bisect.bisect_left(range(1, wanted + 1), wanted, key=evaluations) + 1
    if evaluations(n) == wanted:
        return n
    found = {evaluations(n): n for n in range(1, 2 * n + 1)}
    if wanted not in found:
        nearest = [
            max((few for few in found if few < wanted), default=None),
            min(more for more in found if more > wanted),
        ]
        expected = " or ".join(str(number) for number in nearest if number is not None)
        raise UserError(f"nfe is {wanted}, which solver {solver} cannot spend exactly; expected {expected}")
    return found[wanted]
