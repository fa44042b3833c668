"""What generate writes about all images together: one picture, a page, and an animation of how they came about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_fast import distributed, pages, pictures
from edm_fast.cli._outputs import expect_output, naming
from edm_fast.errors import UserError
from edm_fast.files import atomic_write
from edm_fast.sampling import arrange, save_grid, seed_inputs, to_uint8

KINDS = {"grid": ("png", ".png"), "html": ("text", ".html"), "trajectory": ("gif", ".gif")}  # by option
MOST = {"grid": 10_000, "html": 10_000, "trajectory": 64}
FRAME, LAST = 120, 1500  # milliseconds
CLASSES_AT_ONCE = 500


def check_overviews(options: Mapping[str, Any]) -> None:
    """UserError for a name of another kind, and for more images than the file could show."""
    for option, (_, suffix) in KINDS.items():
        if options[option] is None:
            continue
        if Path(options[option]).suffix.lower() != suffix:
            raise UserError(f"--{option} is {options[option]!r}; expected the name of a {suffix} file")
        if len(options["seeds"]) > MOST[option]:
            raise UserError(f"--{option} takes at most {MOST[option]:,} images; --seeds has {len(options['seeds']):,}")
    if options["trajectory"] is not None and (options["skip_existing"] or distributed.launched() > 1):
        raise UserError("--trajectory shows images as they are drawn; expected one process, and no --skip-existing")


def folders(options: Mapping[str, Any]) -> list[Path]:
    """Where overviews are written."""
    return [Path(options[option]).parent for option in KINDS if options[option] is not None]


def expect_overviews(options: Mapping[str, Any], images: Sequence[str]) -> None:
    """Look at what is there under the names of the overviews."""
    for option, (kind, _) in KINDS.items():
        if options[option] is not None:
            expect_output(options[option], kind, *images)


class Trajectory:
    """A callback of `generate` that keeps the denoised images after each step, as bytes."""

    def __init__(self) -> None:
        self.frames: dict[int, list[np.ndarray]] = {}

    def __call__(self, seeds: Sequence[int], i: int, sigma: float, x: torch.Tensor, denoised: torch.Tensor) -> None:
        for seed, image in zip(seeds, to_uint8(denoised), strict=True):
            self.frames.setdefault(seed, []).append(image)

    def save(self, path: str, images: Mapping[int, bytes]) -> None:
        """Write the animation; its last frame has the finished images, by seed."""
        steps = zip(*(self.frames[seed] for seed in images))
        frames = [*map(arrange, steps), arrange([*map(decode, images.values())])]
        data = pictures.encode_gif(frames, [FRAME] * (len(frames) - 1) + [LAST])
        with naming(Path(path)), atomic_write(path, kind="gif") as file:
            file.write(data)


def write_overviews(
    options: Mapping[str, Any],
    contents: Callable[[], Mapping[int, bytes]],
    labels: Callable[[Sequence[int]], Sequence[int | None]],
    trajectory: Trajectory | None,
    page: Mapping[str, Any],
) -> None:
    """contents(): the PNGs by seed; other ranks made some, an earlier run others. labels(seeds): their classes.

    page: title, note and settings of the contact sheet.
    """
    images = contents() if any(options[option] is not None for option in KINDS) else {}
    if options["grid"] is not None:
        with naming(Path(options["grid"])):
            save_grid(options["grid"], [decode(images[seed]) for seed in options["seeds"]])
    if trajectory is not None:
        trajectory.save(options["trajectory"], images)
    if options["html"] is not None:
        text = contact_sheet(images, labels([*images]), **page)
        with naming(Path(options["html"])), atomic_write(options["html"], "w", kind="text") as file:
            file.write(text)


def decode(data: bytes) -> np.ndarray:
    """(H, W, C) uint8."""
    return np.atleast_3d(pictures.decode(data, "of a seed"))


def classes(net: Any, seeds: Sequence[int], class_idx: int | None, device: torch.device) -> list[int | None]:
    """The class of each image: what its seed draws on the device, if no class was asked for."""
    if not net.label_dim or class_idx is not None:
        return [class_idx] * len(seeds)
    found: list[int | None] = []
    for start in range(0, len(seeds), CLASSES_AT_ONCE):
        labels = seed_inputs(net, seeds[start : start + CLASSES_AT_ONCE], device=device)[1]
        assert labels is not None
        found += labels.argmax(dim=1).tolist()
    return found


def contact_sheet(
    images: Mapping[int, bytes], labels: Iterable[int | None], title: str, note: str, settings: Mapping[str, Any]
) -> str:
    """A page of all images, small ones enlarged, each with its seed and class."""
    first = decode(next(iter(images.values())))
    scale = max(1, 96 // first.shape[1])
    shown = [
        {
            "source": pages.inline(data),
            "caption": f"seed {seed}" + ("" if label is None else f", class {label}"),
        }
        for (seed, data), label in zip(images.items(), labels)
    ]
    size = {"width": first.shape[1] * scale, "height": first.shape[0] * scale}
    return pages.render("sheet.html", title=title, note=note, settings=settings, images=shown, **size)
