"""The one reader of labels: dataset.json, or the names of top-level folders where a conversion asks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edm_fast.data._listing import LABEL_FILE, FolderSource, Listing, plain_name
from edm_fast.errors import UserOSError, count, one_line, some

Label = int | list[float]
MAX_CLASS = 999_999  # a label becomes a one-hot vector of this length; networks take no more classes either
LARGEST = float(np.finfo(np.float32).max)
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


@dataclass
class Labels:
    """The labels of images, all of one kind, None where one lacks; no values if there are no labels.

    `origin` says where they are from, or why there are none; `classes` are the names of classes, if known; `absent`
    counts labels of images that are not there.
    """

    origin: str
    names: Sequence[str] = ()
    values: list[Label | None] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    absent: int = 0

    def missing(self) -> str:
        """Text about images without a label where others have one; else ""."""
        names = [name for name, label in zip(self.names, self.values, strict=bool(self.values)) if label is None]
        text = f"{len(names)} of {count(len(self.names), 'image')} without a label: {some(names)}"
        return text if names else ""

    def text(self) -> str:
        """For people: "labels: dataset.json, 10 classes, 3 without"."""
        if not self.values:
            return f"labels: none ({self.origin})"
        numbers = [label for label in self.values if isinstance(label, int)]
        vectors = [label for label in self.values if isinstance(label, list)]
        named = [f"{name or 'files at the top'} = {number}" for name, number in self.classes.items()]
        parts = [f"labels: {self.origin}"]
        parts += [count(max(numbers) + 1, "class") + f" ({some(named, 10)})" * bool(named)] if numbers else []
        parts += [_kind(vectors[0])] if vectors else []
        parts += [f"{self.values.count(None)} without"] if None in self.values else []
        return ", ".join(parts + [f"{self.absent} for images that are not there"] * bool(self.absent))


def _kind(label: Any) -> str:
    if isinstance(label, list) and label and all(type(number) in (int, float) for number in label):
        finite = all(abs(number) <= LARGEST for number in label)
        return f"vectors of {count(len(label), 'number')}" if finite else "lists of numbers that are not finite"
    if isinstance(label, list):
        return "lists of other things than numbers"
    return {int: "integers", bool: "true or false", float: "fractions", str: "texts"}.get(type(label), "tables")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def parse(text: bytes, where: str) -> tuple[dict[str, Label] | None, dict[str, int]]:
    """Labels by plain name in the text of a dataset.json, None if they are null, and the names of classes.

    A null label counts as none, a whole fraction (3.0) as an integer, and a table of names as a list of pairs.
    """
    try:
        table = json.loads(text, object_pairs_hook=_once)
        pairs, classes = table["labels"], table.get("classes")
        if pairs is None:
            return None, {}
        pairs = [(plain_name(name), label) for name, label in (pairs.items() if isinstance(pairs, dict) else pairs)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f'{where} is damaged ({one_line(error)}); expected {{"labels": [[name, label], ...]}} or null labels'
        raise UserOSError(why) from None
    whole = {name: int(x) if isinstance(x, float) and x.is_integer() else x for name, x in pairs}
    values = {name: label for name, label in whole.items() if label is not None}
    kinds = {_kind(label) for label in values.values()}
    numbers = [label for label in values.values() if isinstance(label, int)]
    if len(whole) < len(pairs):
        why = f"labels {len(pairs) - len(whole)} names more than once; expected one label each"
    elif not values:
        why = "labels no image; expected one label for each, or null labels"
    elif len(kinds) > 1 or not min(kinds).startswith(("integers", "vectors")):
        why = f"holds labels that are {' and '.join(sorted(kinds))}; expected integers, or lists of as many numbers"
    elif min(numbers, default=0) < 0:
        why = f"has the class label {min(numbers)}; expected integers from 0 up"
    elif max(numbers, default=0) > MAX_CLASS:
        why = f"has a class label above {MAX_CLASS}; expected integers from 0 up"
    else:
        named = isinstance(classes, dict) and all(type(number) is int for number in classes.values())
        return values, classes if named else {}
    raise UserOSError(f"{where} {why}")


def read_labels(listing: Listing, names: Sequence[str], folders: bool = False) -> Labels:
    """Labels of images of a listing: dataset.json at its top, else, if wanted, two or more top-level folders."""
    for table in listing.tables:
        if plain_name(table) == LABEL_FILE:
            labels, classes = parse(listing.read(table), f"{LABEL_FILE} of {listing.path}")
            if labels is None:
                return Labels(f"null in {LABEL_FILE}")
            absent = len(labels.keys() - set(map(plain_name, listing.images)))
            return Labels(LABEL_FILE, names, [labels.get(plain_name(name)) for name in names], classes, absent)
    reason = f"{listing.tables[0]} does not lie at the top" if listing.tables else f"no {LABEL_FILE}"
    tops = {name: name.rpartition("/")[0].split("/")[0] for name in listing.images}
    classes = {top: number for number, top in enumerate(sorted(set(tops.values())))}
    if len(classes) < 2 or not folders:
        return Labels(reason)
    if not isinstance(listing, FolderSource):
        return Labels(f"{reason}; folders inside an archive are no classes, unpack it for that")
    splits = [top for top in classes if top.lower() in SPLITS]
    if len(splits) > 1 or (splits and classes.keys() - {""} == set(splits)):
        raise UserOSError(
            f"{some(splits)} in {listing.path} are parts of a data set, not classes; expected one of them, "
            f"as in --source={listing.path.rstrip('/')}/{splits[0]}, or a {LABEL_FILE}"
        )
    return Labels("folders", names, [classes[tops[name]] for name in names], classes)
