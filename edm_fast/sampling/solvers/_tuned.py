"""Sampler files: the settings that `edm-fast tune` found for one checkpoint, with their measured error.

tuned = edm_fast.load_sampler("model.sampler.json", net)
images = edm_fast.sample(net, latents, labels, **tuned.settings)
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from typing import Any

from edm_fast.checkpoint import find_sampler, weights_digest
from edm_fast.errors import UserError, UserOSError, near, one_line
from edm_fast.files import atomic_write
from edm_fast.sampling.solvers._sample import sample

FORMAT = "edm-fast sampler 1"
SUFFIX = ".sampler.json"
MAX_BYTES = 1 << 20
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TunedSampler:
    """One sampler file; the fields are those of its JSON object, beside "format"."""

    settings: Json  # keywords of edm_fast.sample
    evaluations: int  # of the network for each image
    precision: str  # of edm_fast.accelerate, that the error was measured with
    # per image the RMS difference from the truth in levels of 255, images cut to [-1, 1]: mean and its standard error,
    # median, 95th percentile and worst of the held-out seeds, which of them keeps the bound; the seeds as text
    error: Json
    truth: Json  # solver, num_steps; converged: the worst RMS difference from a finer solution, over its seeds
    checkpoint: Json  # name, digest of the weights
    versions: Json

    def check(self, net: Any) -> None:
        """UserError unless the sampler was tuned for these weights."""
        digest = weights_digest(net)
        if digest != self.checkpoint["digest"]:
            raise UserError(
                f"the sampler was tuned for {self.checkpoint['name']}, whose weights have the digest "
                f"{self.checkpoint['digest']}; these weights have {digest}; expected the sampler file of this network"
            )

    def text(self) -> str:
        """The file's content. UserError if it would not be read again."""
        found = {"format": FORMAT, **dataclasses.asdict(self)}
        _checked(found)
        return json.dumps(found, indent=1) + "\n"

    def describe(self) -> str:
        """One line: what it costs and how far it is from the truth."""
        error = self.error
        bound = f"{error['bound']:g} level{'s' * (error['bound'] != 1)}"
        return (
            f"{self.evaluations} evaluations, certified within {bound} of the "
            f"{self.truth['num_steps']}-step solution in the {error['statistic']} (of {error['images']} images: mean "
            f"{error['mean']:.2f}, median {error['median']:.2f}, 95th percentile {error['p95']:.2f}, worst "
            f"{error['worst']:.2f})"
        )


# what each object of the file holds; a number is a float of JSON or an integer
FIELDS: dict[str, dict[str, type]] = {
    "": {
        "format": str,
        "settings": dict,
        "evaluations": int,
        "precision": str,
        "error": dict,
        "truth": dict,
        "checkpoint": dict,
        "versions": dict,
    },
    "error": {
        "bound": float,
        "statistic": str,
        "mean": float,
        "se": float,
        "median": float,
        "p95": float,
        "worst": float,
        "images": int,
        "seeds": str,
    },
    "truth": {"solver": str, "num_steps": int, "precision": str, "converged": float, "converged_seeds": str},
    "checkpoint": {"name": str, "digest": str},
    "versions": {"edm_fast": str, "torch": str, "device": str},
}


def load_sampler(path: str | os.PathLike[str], net: Any = None) -> TunedSampler:
    """Read a sampler file; the name of a demo model names its own, USER/REPO that of a network on the Hugging Face hub.

    UserError for a damaged file or, with `net`, for one that was made for other weights.
    """
    name = str(path)
    file = find_sampler(path)
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_BYTES)
    except OSError as error:
        raise UserOSError(f"{name}: {one_line(error)}") from None
    try:
        found = json.loads(data)
    except ValueError:
        raise UserError(f"{name} is no JSON, or cut short; expected a file that edm-fast tune has written") from None
    try:
        tuned = _checked(found)
        if net is not None:
            tuned.check(net)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return tuned


def save_sampler(path: str | os.PathLike[str], tuned: TunedSampler) -> None:
    """Write a sampler file, whole or not at all."""
    text = tuned.text()
    with atomic_write(path, "w", kind="json") as file:
        file.write(text)


def _checked(found: Any) -> TunedSampler:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        given = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise UserError(f"its format is {str(given)[:80]!r}; expected {FORMAT!r}")
    for name, fields in FIELDS.items():
        _check_fields(found[name] if name else found, fields, f"{name}." if name else "")
    settings = found["settings"]
    if not isinstance(settings.get("solver"), str) or not isinstance(settings.get("levels"), list):
        raise UserError("settings lack the solver or the list of levels; expected both")
    if others := sorted(settings.keys() & _OTHERS):
        raise UserError(f"settings have {others[0]}; expected a solver, its levels and its options")
    evaluations = sample.solver(_AnyNetwork(), None, **settings).evaluations  # type: ignore[attr-defined]
    if evaluations != found["evaluations"]:
        raise UserError(f"its settings cost {evaluations} evaluations; expected {found['evaluations']}, as it says")
    return TunedSampler(**{name: value for name, value in found.items() if name != "format"})


def _check_fields(found: Json, fields: dict[str, type], where: str) -> None:
    for name in found:
        if name not in fields:
            raise UserError(f"unknown key {where}{str(name)[:80]}{near(name, fields)}; expected {', '.join(fields)}")
    for name, kind in fields.items():
        if name not in found:
            raise UserError(f"the key {where}{name} is missing")
        value = found[name]
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits or (kind in (int, float) and not 0 <= value < math.inf):
            raise UserError(f"{where}{name} is {str(value)[:80]!r}; expected {WORDS[kind]}")


# keywords of sample that decide nothing beside a list of levels, or are not the solver's
_OTHERS = inspect.signature(sample).parameters.keys() - {"solver", "order", "levels", "ends"}
WORDS = {str: "text", int: "an integer", float: "a number of at least 0", dict: "an object"}


class _AnyNetwork:
    """Stands for a network that knows every noise level, so that settings can be checked without one."""

    sigma_min, sigma_max = 0.0, math.inf

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError

    def round_sigma(self, sigma: Any) -> Any:
        return sigma
