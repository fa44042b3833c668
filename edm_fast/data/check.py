"""What is wrong with a dataset: a folder or zip in the published layout, looked at file by file."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm_fast.data._sources import DAMAGED, decode_image, is_image_name
from edm_fast.errors import UserError, UserOSError

LABEL_FILE = "dataset.json"


@dataclass
class Report:
    """Plain lines: facts, notes (harmless for training) and problems (training or `--cond` would fail)."""

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, as text."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"


def _open(path: Path, report: Report) -> tuple[list[str], Callable[[str], bytes]]:
    """Names of all files, and how to read one."""
    if path.is_dir():
        names = sorted((Path(top) / f).relative_to(path).as_posix() for top, _, files in os.walk(path) for f in files)
        return names, lambda name: (path / name).read_bytes()
    if not path.is_file():
        raise UserOSError(f"no file or folder {path}; expected a dataset")
    if path.suffix.lower() != ".zip":
        raise UserError(f"{path} is neither a folder nor a .zip file; expected a dataset")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable zip ({error}); expected a complete one") from None
    infos = [info for info in archive.infolist() if not info.is_dir()]
    packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        report.notes.append(f"{_count(packed, 'member')} compressed; stored ones are read faster")
    twice = [name for name, count in Counter(info.filename for info in infos).items() if count > 1]
    if twice:
        report.problems.append(f"names that occur more than once: {_some(twice)}")
    return sorted({info.filename for info in infos}), archive.read


def _check_images(names: list[str], read: Callable[[str], bytes], report: Report) -> None:
    shapes: dict[tuple[int, int, int], list[str]] = {}
    broken: list[str] = []
    reason = ""
    for name in names:
        try:
            image = decode_image(io.BytesIO(read(name)), name)
        except DAMAGED as error:
            reason = reason or " ".join(str(error).split())
            broken.append(name)
            continue
        channels = image.shape[2] if image.ndim == 3 else 1
        shapes.setdefault((image.shape[1], image.shape[0], channels), []).append(name)
    if broken:
        report.problems.append(f"{len(broken)} of {len(names)} images cannot be read, the first because: {reason}")
    if not shapes:
        return
    common = max(shapes, key=lambda shape: len(shapes[shape]))
    width, height, channels = common
    report.facts.append(
        f"{_count(names, 'image')}, {'most ' if len(shapes) > 1 else ''}{width}x{height}, {_channels(channels)}"
    )
    for shape, where in shapes.items():
        if shape != common:
            text = f"{shape[0]}x{shape[1]} with {_channels(shape[2])}"
            report.problems.append(f"{_count(where, 'image')} of {text} unlike the rest: {_some(where)}")
    if width != height:
        report.problems.append(f"images are {width}x{height}, not square")
    elif width & (width - 1):
        report.problems.append(f"the side {width} is not a power of two")
    if channels not in (1, 3):
        report.problems.append(f"images have {channels} channels; expected 1 (gray) or 3 (RGB)")


def _check_label_values(labels: dict[str, Any], report: Report) -> None:
    values = list(labels.values())
    kinds = {
        "integers" if type(v) is int else "vectors" if isinstance(v, list) and v else f"{type(v).__name__} values"
        for v in values
    }
    if kinds == {"integers"}:
        count = max(values) + 1
        if min(values) < 0:
            report.problems.append(f"negative class label {min(values)}; expected integers from 0")
            return
        report.facts.append(f"labels: integers, {count} classes")
        used = set(values)
        if len(used) < count:
            absent = [str(c) for c in range(min(count, 1000)) if c not in used]
            report.notes.append(f"classes without an image: {_some(absent, 10)}")
    elif kinds == {"vectors"}:
        lengths = {len(v) for v in values}
        numbers = all(type(x) in (int, float) for v in values for x in v)
        if len(lengths) > 1:
            report.problems.append(f"label vectors of lengths {_some(map(str, sorted(lengths)))}; expected one length")
        elif not numbers:
            report.problems.append("label vectors hold values that are not numbers")
        else:
            report.facts.append(f"labels: vectors of {lengths.pop()} numbers")
    else:
        report.problems.append(
            f"labels are {' and '.join(sorted(kinds))}; expected all integers, or all lists of numbers"
        )


def _check_labels(text: bytes, images: list[str], report: Report) -> None:
    try:
        pairs = json.loads(text)["labels"]
        if pairs is None:
            report.notes.append(f"{LABEL_FILE} has no labels: training works without --cond only")
            return
        labels = {name: value for name, value in pairs}
        if not all(isinstance(name, str) for name in labels):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        report.problems.append(f'{LABEL_FILE} is damaged; expected {{"labels": [[name, label], ...]}} or null labels')
        return
    if len(labels) < len(pairs):
        report.problems.append(f"{LABEL_FILE} labels {len(pairs) - len(labels)} names more than once")
    known = set(images)
    missing = [name for name in images if name not in labels]
    absent = [name for name in labels if name not in known]
    if missing:
        report.problems.append(f"{len(missing)} of {_count(images, 'image')} without a label: {_some(missing)}")
    if absent:
        slashes = " (it uses backslashes; expected forward ones)" if any("\\" in name for name in absent) else ""
        report.problems.append(f"{_count(absent, 'label')} for images that are not there: {_some(absent)}{slashes}")
    if labels:
        _check_label_values(labels, report)


def check(path: str | os.PathLike[str]) -> Report:
    """Look at every file of the dataset at `path`. UserError if there is nothing to look at."""
    report = Report()
    names, read = _open(Path(path), report)
    images = [name for name in names if is_image_name(name)]
    known = {LABEL_FILE, *images}
    others = [name for name in names if name not in known]
    if others:
        report.notes.append(f"{_count(others, 'file')} not read as an image: {_some(others)}")
    if not images:
        report.problems.append("no images; expected PNG files, or others that Pillow reads")
    _check_images(images, read, report)
    if LABEL_FILE not in names:
        nested = [name for name in others if name.endswith("/" + LABEL_FILE)]
        hint = f" (there is {nested[0]}, but it has to lie at the top)" if nested else ""
        report.notes.append(f"no {LABEL_FILE}{hint}: training works without --cond only")
        return report
    try:
        text = read(LABEL_FILE)
    except DAMAGED as error:
        report.problems.append(f"{LABEL_FILE} cannot be read: {' '.join(str(error).split())}")
        return report
    _check_labels(text, images, report)
    return report
