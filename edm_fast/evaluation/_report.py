"""The results of bench for people: lines for a terminal, Markdown, a chart, and the table of the README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edm_fast.errors import BROKEN, UserError, count, one_line
from edm_fast.evaluation._rows import ROWS
from edm_fast.evaluation._targets import TARGETS
from edm_fast.files import atomic_write

Entry = dict[str, Any]
BEGIN, END = "<!-- benchmarks: begin, made by `edm-fast bench --readme` -->", "<!-- benchmarks: end -->"
NO_RESULTS = "No network has been measured yet; `edm-fast bench` does it."
MISSING = "–"


def read(path: Path) -> Entry:
    """A document that bench wrote."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["target"] in TARGETS and isinstance(document["settings"], dict):
            document["rows"] = [entry for entry in document["rows"] if entry["row"] in ROWS]
            return document
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not a file of edm-fast bench; expected JSON with target, settings and rows")


def line(entry: Entry) -> str:
    """One row of the terminal's table."""
    where = f"{entry['network'][-30:]:31s}{entry['batch']:5d}  {entry['row']:17s}"
    if "reason" in entry:
        return f"{where}cannot run: {entry['reason']}"
    low, high = entry["ratio_quartiles"]
    memory = f"{entry['memory_bytes'] / 2**20:9.0f}" if "memory_bytes" in entry else ""
    levels = f"  {entry['levels']:.2g} levels" if "levels" in entry else ""
    return (
        f"{where}{entry['median_s'] * 1e3:10.1f}{entry['images_per_s']:10.3g}{entry['ratio']:8.2f}"
        f"  {low:.2f}-{high:.2f}  {entry['error']:.1e}{memory}{levels}"
    )


def table(document: Entry) -> list[str]:
    head = f"{'network':31s}batch  {'row':17s}{'ms':>10s}{'images/s':>10s}{'speed':>8s}  quartiles    error"
    return [head + ("   MiB" if any("memory_bytes" in e for e in document["rows"]) else "")] + [
        line(entry) for entry in document["rows"]
    ]


def _grid(document: Entry, key: str, form: str) -> list[str]:
    """A Markdown table of one number: a line per network and batch, a column per row of the benchmark."""
    entries = [entry for entry in document["rows"] if "ratio" in entry]
    columns = [name for name in ROWS if any(e["row"] == name and key in e for e in entries)]
    lines = [f"| network | batch | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    places = list(dict.fromkeys((entry["network"], entry["batch"]) for entry in entries))
    for network, batch in places:
        cells = {e["row"]: e for e in entries if (e["network"], e["batch"]) == (network, batch)}
        values = [form.format(cells[c][key]) if key in cells.get(c, {}) else MISSING for c in columns]
        lines.append(f"| {network} | {batch} | {' | '.join(values)} |")
    return lines


def heading(document: Entry) -> str:
    found = document["settings"]
    where = found["cpu"] if found["device"] == "cpu" else found["device"]
    target = TARGETS[document["target"]]
    return (
        f"Speed of one {target.unit} relative to eager PyTorch in float32 (reference = 1.00), {where}, "
        f"{count(found['threads'], 'thread')}{', CPU time' if 'clock' in found else ''}, torch {found['torch']}, "
        f"{document['date'][:10]}"
    )


def markdown(document: Entry) -> str:
    """A page: the speeds, the seconds, the errors, the memory, and what could not run."""
    settings = ", ".join(f"{key} {value}" for key, value in document["settings"].items())
    parts = [
        f"# {document['target']}",
        heading(document) + ":",
        "\n".join(_grid(document, "ratio", "{:.2f}")),
        "Median seconds of a call:",
        "\n".join(_grid(document, "median_s", "{:.4g}")),
        "Error relative to the reference, ||y - y_ref|| / ||y_ref||:",
        "\n".join(_grid(document, "error", "{:.1e}")),
    ]
    if any("levels" in entry for entry in document["rows"]):
        parts += ["Mean difference in levels of 255:", "\n".join(_grid(document, "levels", "{:.2g}"))]
    if any("memory_ratio" in entry for entry in document["rows"]):
        parts += ["Peak memory relative to the reference:", "\n".join(_grid(document, "memory_ratio", "{:.2f}"))]
    reasons = dict.fromkeys(f"- {entry['row']}: {entry['reason']}" for entry in document["rows"] if "reason" in entry)
    if reasons:
        parts += ["Not measured:", "\n".join(reasons)]
    parts += [f"Command: `{document['command']}`", f"Settings: {settings}."]
    return "\n\n".join(parts) + "\n"


def chart(document: Entry, path: Path) -> str | None:
    """Write a bar chart of the speeds; the reason if it cannot be drawn."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ModuleNotFoundError as error:
        return f"no chart: {(error.name or 'matplotlib').partition('.')[0]} is not installed"
    except BROKEN as error:
        return f"no chart: matplotlib does not load ({type(error).__name__}: {one_line(error)})"
    entries = [entry for entry in document["rows"] if "ratio" in entry]
    places = list(dict.fromkeys((entry["network"], entry["batch"]) for entry in entries))
    names = [name for name in ROWS if any(entry["row"] == name for entry in entries)]
    figure = Figure(figsize=(max(8.0, 1.6 * len(places) + 3), 5), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / max(len(names), 1)
    for index, name in enumerate(names):
        mine = {(entry["network"], entry["batch"]): entry for entry in entries if entry["row"] == name}
        at = [k for k, place in enumerate(places) if place in mine]
        found = [mine[places[k]] for k in at]
        heights = [entry["ratio"] for entry in found]
        spread = [
            [abs(entry["ratio"] - entry["ratio_quartiles"][side]) for entry in found] for side in (0, 1)
        ]  # below and above
        left = [k + (index - (len(names) - 1) / 2) * width for k in at]
        axes.bar(left, heights, width, yerr=spread, label=name, error_kw={"linewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(places)), [f"{network[-24:]}\nbatch {batch}" for network, batch in places], fontsize=8)
    axes.set_ylabel("speed, reference = 1")
    axes.set_title(heading(document), fontsize=9, wrap=True)
    axes.legend(fontsize=8, ncols=2)
    with atomic_write(path, kind="png") as file:
        figure.savefig(file, format="png", dpi=110)
    return None


def pages(path: Path) -> dict[Path, str]:
    """The files of a target by kind: results, Markdown, chart."""
    return {path: "json", path.with_suffix(".md"): "text", path.with_suffix(".png"): "png"}


def write_pages(path: Path) -> list[str]:
    """Markdown and chart beside a results file; the names written, or why not."""
    document = read(path)
    _, page, picture = pages(path)
    with atomic_write(page, "w", kind="text") as file:
        file.write(markdown(document))
    reason = chart(document, picture)
    return [str(path), str(page), reason or str(picture)]


def results(folder: Path) -> list[Entry]:
    """Every document of bench in a folder, targets in their order, then by file name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected the results of edm-fast bench")
    return [read(path) for target in TARGETS for path in sorted(folder.glob(f"{target}-*.json"))]


def readme_table(documents: Iterable[Entry]) -> str:
    """What stands between the marks of the README."""
    parts = []
    for document in documents:
        grid = _grid(document, "ratio", "{:.2f}")
        if len(grid) > 2:
            parts.append(f"{heading(document)}:\n\n" + "\n".join(grid))
    return "\n\n".join(parts or [NO_RESULTS])


def with_table(readme: str, documents: Sequence[Entry]) -> str:
    """The text of a README with its table made anew. UserError without the two marks."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"it has no place for the table; expected the lines {BEGIN} and {END}")
    table = f"{BEGIN}\n\n{readme_table(documents)}\n\n{END}"
    return head + (table.replace("\n", "\r\n") if "\r\n" in readme else table) + tail


def update_readme(path: Path, folder: Path) -> bool:
    """Rewrite the table of a README from the results in a folder; whether anything changed."""
    documents = results(folder)
    try:
        before = path.read_bytes().decode()
        after = with_table(before, documents)
    except ValueError as error:
        reason = error if isinstance(error, UserError) else "it is not UTF-8 text; expected a README"
        raise UserError(f"{path}: {reason}") from None
    if after != before:
        with atomic_write(path, kind="text") as file:
            file.write(after.encode())
    return after != before
