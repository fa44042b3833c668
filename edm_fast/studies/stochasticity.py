"""What fresh noise does to images: S_churn, S_min, S_max and S_noise (Karras et al. 2022, Alg. 2, Fig. 4, Table 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edm_fast.sampling import edm_sampler
from edm_fast.studies._reference import OPTIONS, reference, scores
from edm_fast.studies._study import Chart, Entry, Grid, Option, Pictures, Session, Study

# one setting at a time moves away from these; a highest level of 80 is that of the sampler, so no limit
BASE = {"S_churn": 20.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
MOVED = {
    "S_churn": (0.0, 5.0, 10.0, 20.0, 40.0, 80.0),
    "S_min": (0.0, 0.01, 0.05, 0.3, 1.0),
    "S_max": (1.0, 5.0, 50.0, 80.0),
    "S_noise": (1.0, 1.003, 1.007, 1.02),
}
PRESETS = {  # the published settings, for other networks and numbers of steps
    "CIFAR-10, VP": (30.0, 0.01, 1.0, 1.007),
    "CIFAR-10, VE": (80.0, 0.05, 1.0, 1.007),
    "ImageNet-64, pre-trained": (80.0, 0.05, 50.0, 1.003),
    "ImageNet-64, retrained": (40.0, 0.05, 50.0, 1.003),
}
WITHOUT = {**BASE, "S_churn": 0.0}
SHOWN = 32


def settings() -> Iterator[dict[str, float]]:
    for name, values in MOVED.items():
        yield from ({**BASE, name: value} for value in values)
    yield from (dict(zip(BASE, values)) for values in PRESETS.values())


def points(session: Session) -> list[Entry]:
    return [dict(values) for values in dict.fromkeys(tuple(each.items()) for each in settings())]


def measure(session: Session, point: Entry) -> Entry:
    images = session.draw(edm_sampler, num_steps=session.options["steps"], **point)
    real = session.shared
    name = "-".join(f"{value:g}" for value in point.values())
    return {
        **scores(real, real.features_of(images)),
        "picture": session.keep(name, images[:SHOWN]),
    }


def show(rows: Sequence[Entry], session: Session) -> list[Chart | Grid | Pictures]:
    known = {tuple(row[name] for name in BASE): row for row in rows}
    best = min(rows, key=lambda row: row["kid"], default=None)
    shown = {"no fresh noise": WITHOUT, "the middle of the charts": BASE, "the least KID": best or BASE}
    pictures = {name: known.get(tuple(values[key] for key in BASE)) for name, values in shown.items()}
    return [
        *(_chart(name, known, rows) for name in MOVED),
        Grid(
            "The settings of the paper, on this network",
            ["settings of", *BASE, *_columns(rows)],
            [
                [name, *values, *_numbers(known[values])]
                for name, values in {"no fresh noise": tuple(WITHOUT.values()), **PRESETS}.items()
                if values in known
            ],
            "Table 5 of the paper; they were found for its networks, with 18 to 256 steps or more.",
        ),
        Grid(
            "Everything measured, the least KID first",
            [*BASE, *_columns(rows)],
            [[*(row[name] for name in BASE), *_numbers(row)] for row in sorted(rows, key=lambda row: row["kid"])],
        ),
        Pictures("Images", {name: row["picture"] for name, row in pictures.items() if row}),
    ]


def _columns(rows: Sequence[Entry]) -> list[str]:
    return ["KID", "± spread", rows[0]["metric"] if rows else "", "precision", "recall"]


def _numbers(row: Entry) -> list[Any]:
    return [row[name] for name in ("kid", "kid_spread", "frechet", "precision", "recall")]


def _chart(name: str, known: dict[tuple[float, ...], Entry], rows: Sequence[Entry]) -> Chart:
    found = [(value, known.get(tuple({**BASE, name: value}.values()))) for value in MOVED[name]]
    measured = [(value, row) for value, row in found if row]
    without = known.get(tuple(WITHOUT.values()))
    lines = {"KID": [(value, row["kid"]) for value, row in measured]}
    if without and measured:
        lines["no fresh noise"] = [(measured[0][0], without["kid"]), (measured[-1][0], without["kid"])]
    others = ", ".join(f"{key} {value:g}" for key, value in BASE.items() if key != name)
    return Chart(f"Images by {name}", name, "kernel distance (KID)", lines, note=f"With {others}.")


STUDY = Study(
    name="stochasticity",
    summary="What fresh noise in every step does to images",
    words=(
        "The stochastic sampler of the paper raises the noise level before each step by fresh noise: as much as "
        "S_churn says, at levels from S_min to S_max, of standard deviation S_noise. It can mend errors of earlier "
        "steps, and it can take detail away.",
        "Quality is told by a kernel distance to training images (KID), which is fair to small numbers of images, with "
        "its spread over blocks of them; differences within the spread mean nothing. The Frechet distance depends on "
        "the number of images and compares within this page alone.",
        "All images of a setting have the same seeds.",
    ),
    prepare=reference,
    points=points,
    measure=measure,
    show=show,
    options={"steps": Option("count", 18, "Of Heun's method, with 2 evaluations in each but the last."), **OPTIONS},
    seeds="0-127",
)
