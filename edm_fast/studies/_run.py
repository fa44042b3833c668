"""The course of a study: point by point, with everything measured on the disk before the next one begins."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tqdm

from edm_fast import __version__
from edm_fast.errors import UserError, count
from edm_fast.evaluation import _machine
from edm_fast.files import atomic_write, check_output
from edm_fast.sampling import save_png
from edm_fast.studies import _page
from edm_fast.studies._study import Chart, Entry, Session, name_of

KINDS = {"json": "json", "csv": "text", "png": "png", "html": "text"}


def run_study(session: Session, command: str = "", say: Any = print) -> list[Path]:
    """Measure what is missing and write NAME.json, .csv, .png and .html; returns their paths.

    The JSON file is written after each point. A session that resumes keeps the points of an earlier run with the same
    settings; UserError if they differ.
    """
    study = session.study
    paths = {suffix: session.outdir / f"{study.name}.{suffix}" for suffix in KINDS}
    replaced = [str(path) for suffix, path in paths.items() if check_output(path, KINDS[suffix])]
    settings = _settings(session)
    rows = _finished(paths["json"], settings) if session.resume else []
    if replaced and not session.resume:
        say(f"note: will be replaced: {', '.join(replaced)}")
    points = study.points(session)
    known = _known(points, rows)
    document: Entry = {"study": study.name, "settings": settings, "machine": _machine.settings(session.device)}
    document |= {"command": command, "date": _now(), "rows": [*known.values()]}
    missing = [point for point in points if _key(point, point) not in known]
    if missing:
        session.shared  # noqa: B018  bad options are told before anything is measured
    write_json(paths["json"], document)  # what a run that is killed leaves was made with these settings
    with tqdm.tqdm(total=len(points), initial=len(known), unit="point", desc=study.name, dynamic_ncols=True) as bar:
        for point in missing:
            bar.set_postfix_str(name_of(point)[:40], refresh=False)
            known[_key(point, point)] = _measured(session, point)
            document |= {"date": _now(), "rows": [known[key] for p in points if (key := _key(p, p)) in known]}
            write_json(paths["json"], document)
            bar.update()
    document["rows"] = [known[_key(point, point)] for point in points]
    if not missing:
        say(f"{study.name}: {count(len(points), 'point')} finished before")
    _write_pages(session, document, paths)
    return [*paths.values()]


def _known(points: Sequence[Entry], rows: Sequence[Entry]) -> dict[str, Entry]:
    """The rows that are points of this run, by key."""
    keys = {_key(point, point) for point in points}
    kinds = dict.fromkeys(tuple(point) for point in points)
    found = {_key(kind, row): row for row in rows for kind in kinds if row.keys() >= {*kind}}
    return {key: row for key, row in found.items() if key in keys}


def _measured(session: Session, point: Entry) -> Entry:
    start = time.perf_counter()
    try:
        found = session.study.measure(session, point)
    except UserError as error:
        found = {"reason": str(error)}
    for name, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            found = {"reason": f"{name} is {value}"}
            break
    return {**point, **found, "seconds": round(time.perf_counter() - start, 3)}


def _key(point: Iterable[str], row: Mapping[str, Any]) -> str:
    """Names a point by its own entries, in a row that may have more."""
    return json.dumps({name: row[name] for name in point}, sort_keys=True)


def _settings(session: Session) -> Entry:
    """All that decides the numbers."""
    return {
        "network": session.digest,
        "seeds": session.seeds,
        "device": session.device.type,
        "torch": torch.__version__,
        "edm_fast": __version__,
        **{name: str(value) if isinstance(value, Path) else value for name, value in session.options.items()},
    }


def _finished(path: Path, settings: Entry) -> list[Entry]:
    """The rows of an earlier run; none if there was none. UserError if it had other settings."""
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows, before = document["rows"], document["settings"]
        if document["study"] != path.stem or not all(isinstance(row, dict) for row in rows):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a file of this study; expected another --outdir, or no --resume") from None
    for name, value in json.loads(json.dumps(settings)).items():
        if before.get(name) != value:
            was, now = (f"{str(each)[:60]!r}" for each in (before.get(name), value))
            raise UserError(f"{path} was made with {name} {was}, now it is {now}; expected no --resume, or as before")
    return [row for row in rows if "reason" not in row]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_json(path: Path, document: Entry) -> None:
    text = json.dumps(document, indent=1, allow_nan=False)
    with atomic_write(path, "w", kind="json") as file:
        file.write(text + "\n")


def _write_pages(session: Session, document: Entry, paths: Mapping[str, Path]) -> None:
    rows = document["rows"]
    with atomic_write(paths["csv"], "w", kind="text") as file:
        file.write(_csv(rows))
    parts = session.study.show([row for row in rows if "reason" not in row], session)
    charts = {part.title: _page.drawn(part) for part in parts if isinstance(part, Chart)}
    if charts:
        save_png(paths["png"], _page.together([*charts.values()]))
    with atomic_write(paths["html"], "w", kind="text") as file:
        file.write(_page.html(session, document, parts, charts))


def _csv(rows: list[Entry]) -> str:
    """A line for each point; lists, such as the error of each seed, are in the JSON file alone."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, (list, dict)))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
