"""Datasets in the published layout, from other layouts.

Output: image number i at `{i:08d}[:5]/img{i:08d}.png` (PNG, compression level 0, mode L or RGB), then `dataset.json`
with [name, label] pairs or null, and the classes by name where they are known; a folder, or a zip of stored members.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from edm_fast.data._listing import Shape, fault, shape_text
from edm_fast.data._output import check_dest, encode_labels, member_name, output_at
from edm_fast.data._sources import open_source
from edm_fast.data._transforms import TRANSFORMS as TRANSFORMS
from edm_fast.data._transforms import transform_by_name
from edm_fast.errors import UserError
from edm_fast.networks.sides import side_note
from edm_fast.pictures import encode_png

Item = tuple[np.ndarray | None, Any]  # image (H, W) or (H, W, C) uint8, or None where skipped; label or None


def convert(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    max_images: int | None = None,
    transform: str | None = None,
    resolution: tuple[int, int] | None = None,
    progress: Callable[[Iterable[Item], int], Iterable[Item]] = lambda items, count: items,
    report: Callable[[str], None] = print,
) -> int:
    """Convert `source` to `dest`; the number of images written.

    transform: None (resize only) or a name of TRANSFORMS; resolution: (width, height).
    progress(items, count) may wrap the loop; report(line) is told what was found, and of entries left out.
    """
    apply = transform_by_name(transform, resolution)
    replaces = check_dest(dest, source)
    count, items, classes = open_source(source, max_images, report)
    changed = ((apply(image), label) for image, label in items)
    written = write_dataset(dest, progress(changed, count), classes, report)
    if replaces:
        report(f"{dest} was there and has been replaced")
    return written


def write_dataset(
    dest: str | os.PathLike[str],
    items: Iterable[Item],
    classes: dict[str, int] | None = None,
    report: Callable[[str], None] = print,
) -> int:
    """Write (image, label) items to a folder or .zip; the number of images written. A skipped item leaves a gap."""
    labels: list[tuple[str, Any]] = []
    first: Shape | None = None
    with output_at(dest) as write:
        for index, (image, label) in enumerate(items):
            if image is None:
                continue
            shape = (image.shape[1], image.shape[0], image.shape[2] if image.ndim == 3 else 1)
            first = first or shape
            why = fault(shape)
            if shape != first:
                why = f"an image of {shape_text(shape)} follows ones of {shape_text(first)}"
            if why:
                raise UserError(f"image {index}: {why}; see --resolution and --transform")
            name = member_name(index)
            write(name, encode_png(image, compress_level=0, optimize=False))
            labels.append((name, label))
        if first is None:
            raise UserError("no image to write; expected at least one in the source that the transform does not skip")
        write("dataset.json", encode_labels(labels, classes or {}))
    if side_note(first[0]):
        report(f"note: {side_note(first[0])}")
    return len(labels)
