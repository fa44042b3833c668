"""edm_fast.sample: every solver by name, on any noise levels."""

from __future__ import annotations

import bisect
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError, near
from edm_fast.sampling import _arguments, loop
from edm_fast.sampling._guidance import Guidance
from edm_fast.sampling.levels import LEVELS, has_rho
from edm_fast.sampling.solvers._registry import registry

ENDS = ("zero", "sigma_min", "denoised")


@loop.sampler
def sample(
    net: Any,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: loop.RandnLike = torch.randn_like,
    *,
    solver: str = "heun",
    order: int | None = None,
    num_steps: int | None = None,
    nfe: int | None = None,
    levels: str | Sequence[float] | Tensor = "karras",
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float | None = None,
    guidance: Guidance | None = None,
    callback: loop.Callback | None = None,
    ends: str = "zero",
    **solver_options: Any,
) -> loop.Solver:
    """Denoise latents (N, C, H, W) ~ N(0, I) with any solver; returns float64, not clipped.

    solver: a name of `edm_fast.sampling.solvers`; `order` and `solver_options` are its own.
    num_steps (18 if neither is given) or nfe: steps, or evaluations of `net` for an image, guidance apart.
    levels: a name of `edm_fast.sampling.levels`, cut to the network's own range; or the levels
    themselves, one more than steps, falling, from sigma_max down to the last, which may be 0.
    ends: where levels by name end. "zero": num_steps levels, then 0. "sigma_min": num_steps + 1 levels.
    "denoised": these, and then x = D(x; sigma_min), one evaluation more.
    rho: of levels by name that have one; None: 7 for "karras", 2 for "time_uniform", 1 for "polyexponential".
    guidance: see `edm_fast.Guidance`. callback: see `edm_fast.sampling.run`. UserError for bad options.
    """
    _arguments.check_network(net)
    method = functools.partial(_method(solver, order, solver_options), ends=ends)
    if ends not in ENDS:
        raise UserError(f"ends is {ends!r}; expected one of {', '.join(ENDS)}")
    if nfe is not None and num_steps is not None:
        raise UserError(f"num_steps is {num_steps} and nfe is {nfe}; expected one of them")
    if not isinstance(levels, str):
        return _on_list(net, method, levels, num_steps, nfe)
    if levels not in LEVELS:
        raise UserError(f"levels is {levels!r}; expected numbers or one of {', '.join(LEVELS)}")
    lo, hi = _arguments.limits(net, sigma_min, sigma_max)
    exponent = {} if rho is None else {"rho": _arguments.positive("rho", rho)}
    n = _arguments.steps(18 if num_steps is None else num_steps)
    zero = [0.0] if ends == "zero" else []

    def grid(n: int) -> Tensor:
        return LEVELS[levels](n + 1 - len(zero), lo, hi, **(exponent if has_rho(levels) else {}))

    if nfe is not None:
        n = _steps_of(nfe, solver, lambda n: method([*grid(n).tolist(), *zero]).evaluations)
    return method(_falling([*loop.round_sigma(net, grid(n)).tolist(), *zero]))


def _method(name: str, order: int | None, options: dict[str, Any]) -> Callable[..., loop.Solver]:
    """The solver as a function of levels and `ends`. UserError for a name or an option that does not exist."""
    if name not in registry():
        raise UserError(
            f"solver is {name!r}{near(str(name), registry())}; expected one of {', '.join(sorted(registry()))}"
        )
    family = registry()[name]
    known = [p.name for p in inspect.signature(family).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = options if order is None else {**options, "order": order}
    for option in options:
        if option not in known:
            raise UserError(f"solver {name} has no option {option}; expected {', '.join(known) or 'none'}")

    def make(levels: Sequence[float], ends: str) -> loop.Solver:
        made = family(levels, **options)
        return loop.denoised_at_the_end(made) if ends == "denoised" else made

    return make


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
