"""Datasets in the published layout, from other layouts.

Output: image number i at `{i:08d}[:5]/img{i:08d}.png` (PNG, compression level 0, mode L or RGB), then `dataset.json`
with [name, label] pairs or null; a folder, or a zip whose members are stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from edm_fast.data._output import check_dest, encode_labels, encode_png, member_name, output_at
from edm_fast.data._sources import open_source
from edm_fast.data._transforms import transform_by_name
from edm_fast.errors import UserError

Item = tuple[np.ndarray | None, Any]  # image (H, W) or (H, W, C) uint8, or None where skipped; label or None


def check_image(image: np.ndarray, first: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """(height, width, channels) of an image, which has to be square, 1 or 3 channels, a power of two, as the first."""
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    if first is None:
        if height != width:
            raise UserError(f"images are {width}x{height} after the transform; expected square ones, see --resolution")
        if channels not in (1, 3):
            raise UserError(f"images have {channels} channels; expected 1 (gray) or 3 (RGB)")
        if width & (width - 1):
            raise UserError(f"images are {width}x{height} after the transform; expected a side that is a power of two")
    elif (height, width, channels) != first:
        raise UserError(
            f"an image of {width}x{height}x{channels} follows ones of {first[1]}x{first[0]}x{first[2]}; "
            "expected width, height and channels as in the first, see --resolution"
        )
    return height, width, channels


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

    transform: None (resize only), "center-crop" or "center-crop-wide"; resolution: (width, height).
    progress(items, count) may wrap the loop; report(line) is told of entries left out.
    """
    apply = transform_by_name(transform, resolution)
    check_dest(dest)
    count, items = open_source(source, max_images, report)
    changed = ((apply(image), label) for image, label in items)
    return write_dataset(dest, progress(changed, count))


def write_dataset(dest: str | os.PathLike[str], items: Iterable[Item]) -> int:
    """Write (image, label) items to a folder or .zip; the number of images written. A skipped item leaves a gap."""
    labels: list[tuple[str, Any]] = []
    first = None
    with output_at(dest) as write:
        for index, (image, label) in enumerate(items):
            if image is None:
                continue
            name = member_name(index)
            try:
                shape = check_image(image, first)
            except UserError as error:
                raise UserError(f"image {index}: {error}") from None
            first = first or shape
            write(name, encode_png(image))
            labels.append((name, label))
        if not labels:
            raise UserError("no image to write; expected at least one in the source that the transform does not skip")
        write("dataset.json", encode_labels(labels))
    return len(labels)
