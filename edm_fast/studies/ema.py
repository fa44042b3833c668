"""Quality by the width of the average of weights, after training. Karras et al. 2024, Section 3 and Figures 5 and 6."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_fast.diffusion.ema import WIDEST, reconstruction, reconstruction_error
from edm_fast.errors import UserError
from edm_fast.plan import accelerate
from edm_fast.sampling import edm2_sampler
from edm_fast.studies._reference import OPTIONS, reference, scores
from edm_fast.studies._study import Chart, Entry, Grid, Option, Pictures, Session, Study
from edm_fast.training import images_of, inputs_until, reconstruct_averages, stored_averages

SHOWN = 32
METRICS = {"frechet": "Frechet distance", "kid": "Kernel distance"}


@functools.cache
def demo_snapshots() -> Path:
    """The folder of the demo's: averages of five widths at the end of a training on digits, see benchmarks/demo."""
    return Path(str(importlib.resources.files("edm_fast") / "assets" / "demo-edm2"))


def stored(session: Session) -> list[Any]:
    folder = session.options["snapshots"]
    return stored_averages(demo_snapshots() if folder is None else folder)


def points(session: Session) -> list[Entry]:
    found, kimgs = stored(session), session.options["kimg"]
    times = [inputs_until(found, None)[1]] if kimgs is None else [images_of(kimg) for kimg in kimgs]
    inputs = {time: len(inputs_until(found, time)[0]) for time in times}
    if not all(0 < std < WIDEST for std in session.options["stds"]):
        raise UserError(f"--stds are {session.options['stds']}; expected widths above 0 and below {WIDEST:.3f}")
    return [
        {"kimg": time // 1000, "snapshots": number, "std": float(std)}
        for time, number in inputs.items()
        for std in session.options["stds"]
    ]


def prepare(session: Session) -> Any:
    """The real images that all points are compared with."""
    used, _ = inputs_until(stored(session), None)
    (net,) = reconstruct_averages(used[-1:], [used[-1].std])
    return reference(session, net, demo=session.options["snapshots"] is None)


def measure(session: Session, point: Entry) -> Entry:
    real, std = session.shared, point["std"]
    used, nimg = inputs_until(stored(session), images_of(point["kimg"]))
    times, stds = [s.nimg for s in used], [s.std for s in used]
    c = reconstruction(times, stds, [nimg], [std])
    net: Any = reconstruct_averages(used, [std], nimg)[0].to(session.device)
    net.use_fp16 = False
    net = accelerate(net, "fp32") if session.can_accelerate else net
    images = session.draw(edm2_sampler, net, num_steps=session.options["steps"])
    return {
        "off": float(reconstruction_error(times, stds, [nimg], [std], c)[0]),
        "sum": float(abs(c).sum()),
        **scores(real, real.features_of(images)),
        "picture": session.keep(f"{point['kimg']}-{std:g}", images[:SHOWN]),
    }


def show(rows: Sequence[Entry], session: Session) -> list[Chart | Grid | Pictures]:
    if not rows:
        return []
    best = min(rows, key=lambda row: row["frechet"])
    same = sorted((row for row in rows if row["kimg"] == best["kimg"]), key=lambda row: row["std"])
    shown = {"the narrowest": same[0], "the least distance": best, "the widest": same[-1]}
    return [
        *(_chart(rows, metric, title) for metric, title in METRICS.items()),
        Grid(
            "Everything measured",
            ["thousand images", "width", "off", "sum", rows[0]["metric"], "KID", "± spread", "precision", "recall"],
            [
                [str(row["kimg"]), row["std"], row["off"], row["sum"], row["frechet"], row["kid"], row["kid_spread"]]
                + [row["precision"], row["recall"]]
                for row in rows
            ],
            "Off: how far the average that the snapshots add up to is from the wanted one, as the relative distance of "
            "their profiles in time. Sum: of the sizes of their coefficients, by which their rounding grows.",
        ),
        Pictures("Images", {f"{name}, {row['std']:g}": row["picture"] for name, row in shown.items()}),
    ]


def _chart(rows: Sequence[Entry], metric: str, title: str) -> Chart:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(f"{row['kimg']} thousand images", []).append((row["std"], row[metric]))
    name = rows[0]["metric"] if metric == "frechet" else "KID"
    return Chart(f"{title} by width of the average", "width (relative deviation in time)", name, lines)


STUDY = Study(
    name="ema",
    summary="How wide the average of the weights should be",
    words=(
        "The width of an average is its relative deviation in time: how much of the training counts. Averages of any "
        "width are sums of the snapshots of a training, made after it (edm-fast ema reconstruct), so that a training "
        "tells for each width how good its images would be. The best width depends on the network, its training, the "
        "guidance and the measure.",
        "All images of a width have the same seeds. Quality is told by the Frechet distance and by an unbiased kernel "
        "distance (KID) with its spread over blocks of images; both compare within this page alone.",
    ),
    prepare=prepare,
    points=points,
    measure=measure,
    show=show,
    options={
        "snapshots": Option("path", None, "Folder of a run's snapshots of several widths.  [default: the demo's]"),
        "stds": Option("numbers", [0.02, 0.03, 0.04, 0.05, 0.08, 0.1, 0.14, 0.19, 0.25], "Widths."),
        "kimg": Option("ints", None, "Times, in thousand images, each of a snapshot.  [default: the latest]"),
        "steps": Option("count", 10, "Of Heun's method, with 2 evaluations in each but the last."),
        **OPTIONS,
    },
    seeds="0-499",
    needs_network=False,
)
