"""What is wrong with a dataset: a folder or zip in the published layout, looked at file by file."""

from __future__ import annotations

from dataclasses import dataclass, field

from edm_fast.data._labels import Labels, read_labels
from edm_fast.data._listing import Survey, ZipSource, fault, open_listing, shape_text
from edm_fast.errors import UserError, count, some
from edm_fast.files import PathLike
from edm_fast.networks.sides import side_note


@dataclass
class Report:
    """Plain lines: facts, notes (harmless for training) and problems (training or `--cond` would fail)."""

    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _check_images(survey: Survey, report: Report) -> None:
    broken = []
    for name in survey.listing.images:
        try:
            survey.listing.picture(name)
            survey.add(name)
        except UserError as error:
            broken.append(str(error))
    if broken:
        number = f"{len(broken)} of {count(len(survey.listing.images), 'image')}"
        report.problems.append(f"{number} cannot be read, the first because: {broken[0]}")
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


def _check_labels(labels: Labels, report: Report) -> None:
    numbers = {label for label in labels.values if isinstance(label, int)}
    unused = [str(number) for number in range(max(numbers, default=0)) if number not in numbers]
    if not labels.values:
        report.notes.append(f"no labels ({labels.origin}): training works without --cond only")
    elif labels.missing():
        report.problems.append(labels.missing())
    elif unused:
        report.notes.append(f"classes without an image: {some(unused, 10)}")


def check(path: PathLike) -> Report:
    """Look at every file of the dataset at `path`. UserError if there is nothing to look at."""
    listing = open_listing(path, strict=False)
    report = Report(problems=listing.problems())
    if isinstance(listing, ZipSource) and listing.packed:
        report.notes.append(f"{count(listing.packed, 'member')} compressed; stored ones are read faster")
    survey = Survey(listing)
    _check_images(survey, report)
    try:
        labels = read_labels(listing, listing.images)
        _check_labels(labels, report)
        report.facts.append(survey.line(labels.text()))
    except UserError as error:
        report.problems.append(str(error))
        report.facts.append(survey.line("labels: unusable"))
    return report
