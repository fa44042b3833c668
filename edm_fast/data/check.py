"""What is wrong with a dataset: a folder or zip in the published layout, looked at file by file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from edm_fast.data._labels import read_labels
from edm_fast.data._listing import Listing, ZipSource, open_listing
from edm_fast.data._survey import Survey, fault, shape_text
from edm_fast.errors import UserError, count, some
from edm_fast.networks.sides import side_note


@dataclass
class Report:
    """Plain lines: facts, notes (harmless for training) and problems (training or `--cond` would fail)."""

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _check_images(survey: Survey, report: Report) -> None:
    if survey.broken:
        of = len(survey.listing.images)
        why = f"{len(survey.broken)} of {of} images cannot be read, the first because: {survey.broken[0]}"
        report.problems.append(why)
    if not survey.shapes:
        return
    common = max(survey.shapes, key=lambda shape: len(survey.shapes[shape]))
    for shape, names in survey.shapes.items():
        if shape != common:
            text = f"{count(len(names), 'image')} of {shape_text(shape)} unlike the rest, {shape_text(common)}"
            report.problems.append(f"{text}: {some(names)}")
    if fault(common):
        report.problems.append(fault(common))
    elif side_note(common[0]):
        report.notes.append(side_note(common[0]))


def _check_labels(listing: Listing, report: Report) -> str:
    """Text about the labels."""
    try:
        labels = read_labels(listing, listing.images)
    except UserError as error:
        report.problems.append(str(error))
        return "labels: unusable"
    numbers = {label for label in labels.values if isinstance(label, int)}
    unused = [str(number) for number in range(max(numbers, default=0)) if number not in numbers]
    if not labels.values:
        report.notes.append(f"no labels ({labels.origin}): training works without --cond only")
    elif labels.missing():
        report.problems.append(labels.missing())
    elif unused:
        report.notes.append(f"classes without an image: {some(unused, 10)}")
    return labels.text()


def check(path: str | os.PathLike[str]) -> Report:
    """Look at every file of the dataset at `path`. UserError if there is nothing to look at."""
    listing = open_listing(path, strict=False)
    report = Report(problems=listing.problems())
    if isinstance(listing, ZipSource) and listing.packed:
        report.notes.append(f"{count(listing.packed, 'member')} compressed; stored ones are read faster")
    survey = Survey(listing, listing.images, pixels=True)
    _check_images(survey, report)
    report.facts.append(survey.line(_check_labels(listing, report)))
    return report
