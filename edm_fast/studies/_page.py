"""The charts of a study as PNG, and its page: one HTML file with everything inside."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_fast import pages, pictures
from edm_fast.errors import some
from edm_fast.studies._study import Chart, Entry, Grid, Pictures, Session, name_of

COLOURS = ("#4269d0", "#e0861a", "#ff725c", "#2b9c8f", "#3ca951", "#c2569b", "#a463f2", "#7a6a55", "#30343b", "#97bbf5")
DECADE = 10
TICKS = 10  # as many values on a logarithmic axis are all named
LINES = ("-", "--", ":", "-.")
NUMBER = (int, float)


def drawn(chart: Chart) -> np.ndarray:
    """A chart as a picture (H, W, 3) uint8; all are of one size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(7.5, 4.8), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.12, right=0.98, bottom=0.11, top=0.93)  # layout engines draw everything twice
    _draw(axes, chart)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def together(charts: Sequence[np.ndarray]) -> np.ndarray:
    """Charts one below the other, or two in a row where there are many."""
    columns = 1 if len(charts) < 3 else 2
    blank = np.full_like(charts[0], 255)
    padded = [*charts, *[blank] * (-len(charts) % columns)]
    return np.vstack([np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)])


def _draw(axes: Any, chart: Chart) -> None:
    for index, (name, points) in enumerate(chart.lines.items()):
        x, y = zip(*points) if points else ((), ())
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}
        axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.5, label=name, **style)
    if "x" in chart.log:
        axes.set_xscale("log")
        measured = sorted({x for points in chart.lines.values() for x, _ in points})
        if len(measured) <= TICKS:
            axes.set_xticks(measured, [f"{x:g}" for x in measured])
            axes.set_xticks([], minor=True)
    if "y" in chart.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < DECADE * low else "")  # no power of ten may be in between
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    axes.grid(True, which="both", color="#e4e4e4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.lines) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=1 + len(chart.lines) // 9)


def html(
    session: Session,
    document: Mapping[str, Any],
    parts: Sequence[Chart | Grid | Pictures],
    charts: Mapping[str, np.ndarray],
) -> str:
    """The page of a study. charts: as drawn, by title."""
    reasons: dict[str, list[str]] = {}
    for row in document["rows"]:
        if "reason" in row:
            name = name_of({key: value for key, value in row.items() if key not in ("reason", "seconds")})
            reasons.setdefault(row["reason"], []).append(name)
    return pages.render(
        "study.html",
        study=session.study,
        network=session.network,
        document=document,
        settings={name: _shown(value) for name, value in {**document["settings"], **document["machine"]}.items()},
        parts=[_content(part, session, charts) for part in parts],
        reasons={reason: some(names, 6) for reason, names in reasons.items()},
        seconds=sum(row["seconds"] for row in document["rows"]),
    )


def _content(part: Chart | Grid | Pictures, session: Session, charts: Mapping[str, np.ndarray]) -> Entry:
    """A part as the template takes it."""
    if isinstance(part, Chart):
        return {"kind": "chart", "part": part, "source": pages.inline(pictures.encode_png(charts[part.title]))}
    if isinstance(part, Pictures):
        files = {caption: (session.outdir / name).read_bytes() for caption, name in part.files.items()}
        sizes = {caption: _scaled(data) for caption, data in files.items()}
        shown = [(caption, pages.inline(data), *sizes[caption]) for caption, data in files.items()]
        return {"kind": "pictures", "part": part, "files": shown}
    rows = []
    for row in part.rows:
        numbers = [value for value in row if isinstance(value, NUMBER)]
        least = min(numbers, default=None) if part.best else None
        rows.append([(_shown(v), isinstance(v, NUMBER), isinstance(v, NUMBER) and v == least) for v in row])
    return {"kind": "grid", "part": part, "rows": rows}


def _scaled(data: bytes) -> tuple[int, int]:
    """(width, height) in which a picture is shown: small ones twice as large."""
    width, height, _ = pictures.header(io.BytesIO(data), "picture").shape
    factor = 2 if width < 400 else 1
    return width * factor, height * factor


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return some((str(each) for each in value), 16)
    return str(value)
