"""Where low precision is free: images at each precision against float64, and low precision at high noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.evaluation._networks import Exact, half
from edm_fast.evaluation.accuracy import converged, error_levels
from edm_fast.plan import PRECISIONS
from edm_fast.sampling import edm_sampler
from edm_fast.studies._study import Chart, Entry, Grid, Option, Pictures, Session, Study

PLAIN, HALF, MORE_STEPS = "plain float32", "plain bfloat16", "256 steps"
LOW = ("bf16", "fp16", HALF)  # the precisions that are tried at high noise alone
VISIBLE = 0.5  # levels of 255: below it most pixels round to the same byte
ATTRIBUTES = ("sigma_min", "sigma_max", "round_sigma", "img_channels", "img_resolution", "label_dim")


class Denoiser:
    """A function of (x, sigma, labels) with what samplers ask a network for."""

    def __init__(self, net: Any, function: Any) -> None:
        self._function = function
        vars(self).update({name: getattr(net, name) for name in ATTRIBUTES})

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._function(x, sigma, labels)


class Float64Images(NamedTuple):
    exact: Tensor  # (N, C, R, R): the images of float64
    picture: str


def prepare(session: Session) -> Float64Images:
    exact = _sampled(session, Denoiser(session.net, Exact(session.net)))
    return Float64Images(exact, session.keep("float64", exact))


def _sampled(session: Session, net: Any) -> Tensor:
    return session.draw(edm_sampler, net, num_steps=session.options["steps"])


def points(session: Session) -> list[Entry]:
    names = PRECISIONS[session.device.type]
    levels = sorted({0.0, *session.options["above"]})
    everywhere = [{"precision": name, "above": 0.0} for name in (MORE_STEPS, PLAIN, *names, HALF)]
    partly = [
        {"precision": name, "above": level} for name in (*names, HALF) if name in LOW for level in levels if level
    ]
    return everywhere + partly


def measure(session: Session, point: Entry) -> Entry:
    exact, name = session.shared.exact, point["precision"]
    if name == MORE_STEPS:
        images = converged(session.fast, session.seeds, batch=session.batch, device=session.device)
    else:
        images = _sampled(session, _partly(session, name, point["above"]))
    errors = error_levels(images, exact)
    found: Entry = {"mean": errors.mean().item(), "worst": errors.max().item(), "errors": errors.tolist()}
    if not point["above"]:
        found["picture"] = session.keep(name.replace(" ", "-"), images)
    return {**found, "float64": session.shared.picture}


def _partly(session: Session, name: str, above: float) -> Any:
    """The network in a precision above a noise level, and in the best one from there down."""
    low = _network(session, name)
    if not above:
        return low
    rest = session.accelerated("exact") if session.can_accelerate else session.net
    return Denoiser(session.net, lambda x, sigma, labels: (low if float(sigma) > above else rest)(x, sigma, labels))


def _network(session: Session, name: str) -> Any:
    if name in (PLAIN, HALF):
        return session.net if name == PLAIN else half(session.net)
    if not session.can_accelerate:
        raise UserError("the network cannot be accelerated here; expected the compiled part, and no backend by name")
    return session.accelerated(name)


def show(rows: Sequence[Entry], session: Session) -> list[Chart | Grid | Pictures]:
    everywhere = [row for row in rows if not row["above"]]
    partly: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["above"]:
            partly.setdefault(f"{row['precision']}, mean", []).append((row["above"], row["mean"]))
            partly.setdefault(f"{row['precision']}, worst seed", []).append((row["above"], row["worst"]))
    names = dict.fromkeys(row["precision"] for row in rows if row["above"])
    free = [
        [name, min((r["above"] for r in rows if r["precision"] == name and r["worst"] <= VISIBLE), default=None)]
        for name in names
    ]
    return [
        Grid(
            "Error of each precision, at all noise levels",
            ["precision", "mean", "worst seed"],
            [[row["precision"], row["mean"], row["worst"]] for row in everywhere],
            f"Root-mean-square difference in levels of 255 from the images of float64. {MORE_STEPS}: how far these "
            f"{session.options['steps']} steps are from the solution of the ODE, to compare with.",
        ),
        Chart(
            "Low precision at high noise alone",
            "used above noise level",
            "error, levels of 255",
            partly,
            "xy",
            "Below that level the network runs in its best precision.",
        ),
        Grid(
            "From which noise level on it is free",
            ["precision", "free above noise level"],
            free,
            f"The lowest level measured at which no seed is more than {VISIBLE} levels off; 0 is everywhere.",
        ),
        Pictures(
            "Images",
            {"float64": rows[0]["float64"], **{row["precision"]: row["picture"] for row in everywhere}} if rows else {},
        ),
    ]


STUDY = Study(
    name="precision",
    summary="Where low precision is free",
    words=(
        "Each seed is drawn by the same sampler with the network in float64, then in each precision. The difference is "
        "the error of the precision, of one image after all steps, in levels of 255.",
        "Then low precision is used only in the evaluations above a noise level: what it does to an image at high "
        "noise is mostly undone by the steps that follow.",
    ),
    prepare=prepare,
    points=points,
    measure=measure,
    show=show,
    options={
        "steps": Option("count", 18, "Of Heun's method."),
        "above": Option(
            "numbers", [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0], "Noise levels above which precision is low."
        ),
    },
)
