"""The sampler that the options of generate ask for, and its guidance."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import torch

from edm_fast.errors import UserError, near
from edm_fast.files import user_path
from edm_fast.networks import Precond
from edm_fast.sampling import (
    Guidance,
    Solver,
    TunedSampler,
    ablation_sampler,
    edm2_sampler,
    edm_sampler,
    load_sampler,
    sample,
)
from edm_fast.sampling.levels import LEVELS, has_rho
from edm_fast.sampling.solvers import registry

OPTIONS = {  # names of options on the command line where they differ
    "num_steps": "--steps",
    "discretization": "--disc",
    "guidance_interval": "--guidance-interval",
}
ABLATION = ("solver", "discretization", "schedule", "scaling")
NUMBERS = ("num_steps", "sigma_min", "sigma_max", "rho")
CHURN = ("S_churn", "S_min", "S_max", "S_noise")


def tuned_for(options: dict[str, Any]) -> TunedSampler | None:
    """The sampler file that is named. UserError for what it is, or for an option that it decides on itself."""
    if options["sampler_file"] is None:
        return None
    decided = (*NUMBERS, *CHURN, *ABLATION, "order", "nfe", "levels", "guidance", "gnet", "guidance_interval")
    for name in (name for name in decided if name in options["explicit"]):
        raise UserError(f"{_option(name)} does not go with --sampler; expected one of them")
    tuned = load_sampler(options["sampler_file"])
    if options["precision"] not in (None, tuned.precision):
        raise UserError(
            f"--precision is {options['precision']} and {options['sampler_file']} was measured in {tuned.precision}; "
            "expected no --precision, or that of the file"
        )
    return tuned


def sampler_for(options: dict[str, Any], net: Any = None) -> tuple[Any, dict[str, Any]]:
    """(sampler, its keywords). What is not set is not passed.

    edm_fast.sample for every solver but euler and heun, and for --order, --nfe and --levels; otherwise the ablation
    sampler if any of its own four is set; if none is, the sampler published with the network: that of EDM or of EDM2,
    whose --steps are 32 unless set. UserError for options that do not combine.
    """
    if options.get("tuned") is not None:
        return sample, options["tuned"].settings
    if options.get("solver") in (None, "euler", "heun") and all(
        options.get(name) is None for name in ("order", "nfe", "levels")
    ):
        kwargs = {name: options[name] for name in (*NUMBERS, *CHURN, *ABLATION) if options[name] is not None}
        if any(name in kwargs for name in ABLATION):
            return ablation_sampler, kwargs
        if not isinstance(net, Precond):
            return edm_sampler, kwargs
        return edm2_sampler, kwargs if "num_steps" in options["explicit"] else {**kwargs, "num_steps": 32}
    return sample, _of_sample(options)


def _of_sample(options: dict[str, Any]) -> dict[str, Any]:
    solver, explicit = options["solver"] or "heun", options["explicit"]
    known = {} if is_file(solver) else inspect.signature(registry()[solver]).parameters
    for name in ABLATION[1:]:
        if name in explicit:
            raise UserError(
                f"{_option(name)} does not go with --solver={solver}, --order, --nfe or --levels; expected "
                "--solver=euler or heun alone, with --steps"
            )
    for name in (name for name in CHURN if name in explicit and name not in known):
        raise UserError(f"{_option(name)} does not go with --solver={solver} and its options")
    if "nfe" in explicit and "num_steps" in explicit:
        raise UserError(f"--steps is {options['num_steps']} and --nfe is {options['nfe']}; expected one of them")
    if isinstance(options["levels"], str) and "rho" in explicit and not has_rho(options["levels"]):
        raise UserError(f"--rho does not go with --levels={options['levels']}")
    if not isinstance(options["levels"], (str, type(None))):
        for name in (name for name in ("sigma_min", "sigma_max", "rho") if name in explicit):
            raise UserError(f"{_option(name)} does not go with a list of --levels")
    names = [name for name in (*NUMBERS, *CHURN, "order", "nfe", "levels") if name in explicit]
    return {"solver": Path(solver) if is_file(solver) else solver, **{name: options[name] for name in names}}


def _option(name: str) -> str:
    return OPTIONS.get(name, f"--{name}")


def check_guidance(options: dict[str, Any]) -> None:
    """UserError for what decides how to guide without --guidance."""
    if options["guidance_interval"] is not None and options["guidance"] is None:
        raise UserError("--guidance-interval needs --guidance, the weight")


def solver_for(options: dict[str, Any], net: Any) -> Solver:
    """The steps of the sampler, on a state of the type of --dtype."""
    sampler, kwargs = sampler_for(options, net)
    solver: Solver = sampler.solver(net, None, **kwargs)
    return solver if options["dtype"] is None else dataclasses.replace(solver, dtype=getattr(torch, options["dtype"]))


def guidance_for(options: dict[str, Any], net: Any, gnet: Any) -> Guidance | None:
    """gnet: the network of --gnet, ready to run, or None."""
    if options["guidance"] is None:
        return None
    if gnet is None and options["guidance"] != 1 and isinstance(net, Precond):
        raise UserError("--guidance of an EDM2 network needs --gnet: it is not trained to do without a class")
    interval = options["guidance_interval"]
    return Guidance(options["guidance"], gnet, *([] if interval is None else [interval]))


def evaluations(solver: Any, guidance: Guidance | None) -> str:
    """How many evaluations an image costs, in words."""
    second = solver.guided_evaluations(guidance)
    return f"{solver.evaluations} evaluations per image" + (f" and {second} for guidance" if second else "")


def parse_solver(text: str) -> str:
    """A name, or the path of a file that holds a solver."""
    if text in registry():
        return text
    if not re.search(r"[./~]", text):
        raise UserError(
            f"{text!r} is no solver{near(text, registry())}; expected one of {', '.join(sorted(registry()))}, or the "
            "path of a .json file"
        )
    return user_path(text)


def is_file(solver: str | None) -> bool:
    """Whether what parse_solver returned is a path."""
    return solver is not None and solver not in registry()


def parse_levels(text: str) -> str | list[float]:
    """A name, or numbers such as 80,10,1,0."""
    if text in LEVELS:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is no list of numbers such as 80,10,1,0, and none of {', '.join(LEVELS)}") from None


def parse_interval(text: str) -> tuple[float, float]:
    """LO,HI"""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{text!r} is not LO,HI: two noise levels such as 0.2,1.6") from None
    return low, high
