"""Draw the pictures of docs/cpu-engine.md: the tiles of Winograd's algorithm, products in pairs, and measured errors.

    python benchmarks/draw_engine.py --outdir=docs

The errors are those of this machine's instruction set: a layer of 256 to 256 channels on noise, against float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from edm_fast import native
from edm_fast.files import atomic_write
from edm_fast.ops.conv2d.cpu import convolve, pack

BLUE, ORANGE, GRAY = "#3366aa", "#dd7722", "#999999"
ALGORITHMS = {  # by their names in the picture
    "direct": native.ALGORITHMS["direct"],
    "F(2x2)": native.ALGORITHMS["winograd2x2"],
    "F(4x4)": native.ALGORITHMS["winograd4x4"],
    "F(4x8)": native.ALGORITHMS["winograd4x8-unpacked"],
    "F(4x4) in pairs": native.ALGORITHMS["winograd4x4-unpacked-paired"],
    "F(4x8) in pairs": native.ALGORITHMS["winograd4x8-unpacked-paired"],
}


def multiplications(algorithm: native.Algorithm) -> float:
    """Of a 3x3 filter, for each output and input channel. In pairs, two thirds of the channels need half of them."""
    rows, columns = algorithm.rows, algorithm.columns
    return (rows + 2) * (columns + 2) / (rows * columns) * (2 / 3 if algorithm.paired else 1)


def square(axes: Axes, x: float, y: float, width: float, height: float, color: str, **more: Any) -> None:
    axes.add_patch(
        Rectangle((x, y), width, height, **{"facecolor": "none", "edgecolor": color, "linewidth": 2, **more})
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="black"))


def pixels(axes: Axes, x: float, y: float, side: int) -> None:
    for i in range(side):
        for j in range(side):
            square(axes, x + i, y + j, 1, 1, "#cccccc", linewidth=0.6)


def empty_axes(figure: Figure) -> Axes:
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.axis("off")
    return axes


def tiles() -> Figure:
    """F(4x4, 3x3): overlapping tiles, 36 products of matrices, outputs side by side."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = empty_axes(figure)
    pixels(axes, 0, 0, 10)
    square(axes, 0, 4, 6, 6, BLUE)
    square(axes, 4, 4, 6, 6, ORANGE)
    axes.text(5, -0.5, "image of one input channel:\n6x6 tiles, two pixels shared", ha="center", va="top")
    arrow(axes, (10.5, 5), (14, 5))
    axes.text(12.2, 5.4, "transform", ha="center", va="bottom")
    for plane in reversed(range(4)):
        shift = 0.7 * plane
        square(axes, 14.5 + shift, 1.2 + shift, 3.5, 5.5, BLUE, facecolor="white")
        square(axes, 20 + shift, 2.2 + shift, 5, 3.5, GRAY, facecolor="white")
    for row, color in ((5.5, BLUE), (4.6, ORANGE)):
        square(axes, 14.7, row, 3.1, 0.7, color, facecolor=color, linewidth=0)
    axes.text(16.3, 1, "tiles x\nchannels", ha="center", va="top")
    axes.text(22.5, 2, "channels x\noutputs", ha="center", va="top")
    axes.text(20.5, 9.4, "36 products of matrices", ha="center", va="bottom")
    arrow(axes, (27.6, 5), (31.1, 5))
    axes.text(29.3, 5.4, "transform\nback", ha="center", va="bottom")
    pixels(axes, 31.6, 1, 8)
    square(axes, 31.6, 5, 4, 4, BLUE)
    square(axes, 35.6, 5, 4, 4, ORANGE)
    outputs_text = "one output channel: 4x4 of each tile\n36 multiplications in place of 144"
    axes.text(35.6, -0.5, outputs_text, ha="center", va="top")
    axes.set_xlim(-0.5, 40.5)
    axes.set_ylim(-3, 11)
    return figure


def pairs() -> Figure:
    """Two products from one multiplication, and where the other two are subtracted."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = empty_axes(figure)
    axes.text(0, 9.5, "two multiplications", color=GRAY, va="center")
    axes.text(9, 9.5, r"$x_1\,w_1 + x_2\,w_2$", fontsize=14, va="center")
    axes.text(0, 8, "one multiplication", color=BLUE, va="center")
    formula = r"$= (x_1 + w_2)\,(x_2 + w_1)\; -\; x_1\,x_2\; -\; w_1\,w_2$"
    axes.text(9, 8, formula, fontsize=14, va="center")
    rows, columns, left, bottom = 4, 6, 9, 1
    for i in range(rows):
        for j in range(columns):
            square(axes, left + 1.6 * j, bottom + 1.2 * i, 1.5, 1.1, BLUE, linewidth=1)
        square(axes, left - 2, bottom + 1.2 * i, 1.5, 1.1, ORANGE, facecolor=ORANGE, alpha=0.5, linewidth=0)
    for j in range(columns):
        square(axes, left + 1.6 * j, bottom - 1.6, 1.5, 1.1, ORANGE, facecolor=ORANGE, alpha=0.5, linewidth=0)
    rows_text = "$\\sum x_1 x_2$: once for a row,\nwhatever the number of columns"
    axes.text(left - 2.4, bottom + 2.4, rows_text, ha="right", va="center")
    sums_text = "$\\sum (x_1 + w_2)(x_2 + w_1)$:\nfor each row and column"
    axes.text(left + 9.9, bottom + 2.4, sums_text, color=BLUE, va="center")
    axes.text(left + 9.9, bottom - 1, r"$\sum w_1 w_2$: once for a column", va="center")
    axes.set_xlim(-2.5, 28.5)
    axes.set_ylim(-1, 10.5)
    return figure


def relative_errors(channels: int = 256, side: int = 32) -> dict[str, float]:
    """Root mean square of the error over that of the outputs, of ALGORITHMS and of plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    exact = F.conv2d(x.double(), w.double(), padding=1)

    def error(y: torch.Tensor) -> float:
        return float((y.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    found = {}
    for label, algorithm in ALGORITHMS.items():
        y = torch.empty(exact.shape, memory_format=torch.channels_last)
        convolve(y, x, w, 1, (lambda *_, chosen=algorithm: chosen, pack))
        found[label] = error(y)
    found["PyTorch, float32"] = error(F.conv2d(x, w, padding=1))
    found["PyTorch, bfloat16"] = error(F.conv2d(x.bfloat16(), w.bfloat16(), padding=1))
    return found


def errors() -> Figure:
    """Relative error, and how many multiplications it comes with."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    found = relative_errors()
    labels = [f"{label} ({multiplications(ALGORITHMS.get(label, ALGORITHMS['direct'])):.3g})" for label in found]
    for place, (label, error) in enumerate(found.items()):
        axes.plot(error, place, "o", color=BLUE if label in ALGORITHMS else GRAY)
        axes.annotate(f"{error:.1e}", (error, place), xytext=(8, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1e-7, 1e-2)
    axes.set_xlabel("relative error of one layer (in brackets: multiplications for each output and input channel)")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outdir", type=Path, required=True)
    outdir = parser.parse_args().outdir
    matplotlib.rcParams["svg.hashsalt"] = "edm-fast"  # the same identifiers each time
    for name, draw in (("tiles", tiles), ("pairs", pairs), ("errors", errors)):
        with atomic_write(outdir / f"engine-{name}.svg", kind="text") as file:
            draw().savefig(file, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
