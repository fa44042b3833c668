"""How good samples are: Frechet and kernel distance, precision and recall, and the nearest training images."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from edm_fast.evaluation.quality import Reference, nearest
from edm_fast.sampling import sample
from edm_fast.studies._reference import OPTIONS, reference, scores
from edm_fast.studies._study import Chart, Entry, Grid, Option, Pictures, Session, Study

REAL = "other real images"
PAIRS = 8
COLUMNS = {"frechet": "", "kid": "KID", "precision": "precision", "recall": "recall", "near": "near copies"}
LOG = {"frechet": "y", "kid": "", "precision": "", "recall": ""}  # an unbiased KID may be negative
SHARE = 0.01  # of other real images that count as near copies


class Compared:
    """The real images that all points are compared with."""

    def __init__(self, real: Reference) -> None:
        self.real = real

    @functools.cached_property
    def others(self) -> Tensor:
        """Features (N, D) of the other real images."""
        return self.real.features_of(self.real.others)

    @functools.cached_property
    def limit(self) -> float:
        """The distance to a training image below which SHARE of the other real images lie."""
        return float(nearest(self.others, self.real.features)[0].quantile(SHARE))


def prepare(session: Session) -> Compared:
    return Compared(reference(session))


def points(session: Session) -> list[Entry]:
    runs = [{"images": solver, "nfe": nfe} for solver in session.options["solvers"] for nfe in session.options["nfe"]]
    return [{"images": REAL, "nfe": 0}, *runs]


def measure(session: Session, point: Entry) -> Entry:
    shared, real = session.shared, session.shared.real
    if point["images"] == REAL:
        images, features = real.others.double() / 127.5 - 1, shared.others
    else:
        images = session.draw(sample, solver=point["images"], nfe=point["nfe"])
        features = real.features_of(images)
    distances, indices = (column[:, 0] for column in nearest(features, real.features))
    shown = torch.cat([distances.argsort()[:PAIRS], torch.arange(min(PAIRS, len(images)))])
    pairs = torch.stack([images[shown].cpu(), real.images[indices[shown]].double() / 127.5 - 1], 1).flatten(0, 1)
    return {
        **scores(real, features),
        "near": float((distances < shared.limit).double().mean()),
        "picture": session.keep(f"{point['images'].replace(' ', '-')}-{point['nfe']}", pairs),
    }


def show(rows: Sequence[Entry], session: Session) -> list[Chart | Grid | Pictures]:
    if not rows:
        return []
    names = {**COLUMNS, "frechet": rows[0]["metric"]}
    titles = {"frechet": "Frechet distance", "kid": "Kernel distance", "precision": "Precision", "recall": "Recall"}
    charts = [Chart(title, "evaluations", names[key], _lines(rows, key), LOG[key]) for key, title in titles.items()]
    return [
        Grid(
            f"{len(session.seeds)} images against {len(session.shared.real.images)} training images",
            ["images", "evaluations", names["frechet"], "KID", "± spread", *list(names.values())[2:]],
            [[r["images"], str(r["nfe"] or "–"), r["frechet"], r["kid"], r["kid_spread"], *_rest(r)] for r in rows],
            f"{REAL.capitalize()} were not trained on, if the data set says so: what a perfect model would get. Near "
            f"copies are closer to a training image than {SHARE:.0%} of these are; more of them than that are a sign "
            "of memorised images.",
        ),
        *charts,
        Pictures(
            "Nearest training images",
            {_caption(row): row["picture"] for row in rows},
            f"Pairs: an image, and to its right the training image whose features are nearest. The {PAIRS} "
            f"closest, then those of the first {PAIRS} seeds.",
        ),
    ]


def _rest(row: Entry) -> list[float]:
    return [row[name] for name in list(COLUMNS)[2:]]


def _caption(row: Entry) -> str:
    return f"{row['images']}, {row['nfe']} evaluations" if row["nfe"] else row["images"]


def _lines(rows: Sequence[Entry], key: str) -> dict[str, list[tuple[float, float]]]:
    """A line for each solver, and a level one for the real images."""
    lines: dict[str, list[tuple[float, float]]] = {}
    counts = [row["nfe"] for row in rows if row["nfe"]]
    for row in rows:
        where = [row["nfe"]] if row["nfe"] else sorted({min(counts, default=0), max(counts, default=1)})
        lines.setdefault(row["images"], []).extend((nfe, row[key]) for nfe in where)
    return lines


STUDY = Study(
    name="quality",
    summary="How good samples are, and whether they are new",
    words=(
        "The features of samples are compared with those of training images: by the Frechet distance of two Gaussians "
        "(Heusel et al. 2017), by an unbiased kernel distance (KID, Binkowski et al. 2018), and by the share of "
        "samples near real images (precision) and of real images near samples (recall; Kynkaanniemi et al. 2019).",
        "FD-demo compares the features of a small classifier of digits, FD-ENL0 those of EfficientNet-Lite0; only "
        "features of the Inception network give an FID. Distances by different features do not compare, nor do those "
        "of different numbers of images: published FIDs are of 50,000.",
    ),
    prepare=prepare,
    points=points,
    measure=measure,
    show=show,
    options={
        "solvers": Option("words", ["heun", "dpmpp"], "Names of solvers, as of edm-fast generate."),
        "nfe": Option("ints", [5, 9, 17, 35], "Evaluations of the network for an image."),
        **OPTIONS,
    },
    seeds="0-499",
)
