"""Where generate puts the images of seeds: PNG files, or archives of a thousand; what is there, and what is wrong."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from edm_fast import pictures
from edm_fast.cli._outputs import naming
from edm_fast.data._listing import LABEL_FILE, FolderSource, is_archive, open_archive
from edm_fast.data._output import encode_labels, open_tar, open_zip
from edm_fast.errors import UserError, some
from edm_fast.files import atomic_write, check_output
from edm_fast.sampling import deal_seeds, to_uint8
from edm_fast.sampling.images import Stored, image_name, stored

Labels = Callable[[Sequence[int]], Sequence[int | None]]  # the class of each seed
Row = tuple[str, bytes, int | None]  # name, PNG, class


def write_png(path: Path, rows: Sequence[Row]) -> None:
    with atomic_write(path, kind="png") as file:
        file.write(rows[0][1])


def write_zip(path: Path, rows: Sequence[Row]) -> None:
    """A data set with labels, if there are any."""
    with open_zip(path) as write:
        for name, data, _ in rows:
            write(name, data)
        if None not in (labels := [label for *_, label in rows]):
            write(LABEL_FILE, encode_labels([(row[0], label) for row, label in zip(rows, labels)], {}))


def write_tar(path: Path, rows: Sequence[Row]) -> None:
    """The layout of webdataset: 000042.png, and its class in 000042.cls."""
    with open_tar(path) as write:
        for name, data, label in rows:
            write(name, data)
            if label is not None:
                write(name.replace(".png", ".cls"), str(label).encode())


class Format(NamedTuple):
    write: Callable[[Path, Sequence[Row]], None]
    size: int  # most images in a file
    noun: str


FORMATS = {
    "png": Format(write_png, 1, "image"),
    "zip": Format(write_zip, 1000, "archive"),
    "tar": Format(write_tar, 1000, "archive"),
}


class Faults(NamedTuple):
    missing: list[int]  # seeds
    wrong: list[int]  # seeds of images that are damaged or made otherwise
    foreign: list[str]  # names of images that are not of this run


class ImageFiles:
    """The files of the images of `seeds`. Archives are named by their first seed, as 000000.tar, and appear whole."""

    def __init__(self, outdir: Path, seeds: Iterable[int], kind: str = "png", subdirs: bool = False) -> None:
        if subdirs and kind != "png":
            raise UserError(f"--subdirs does not go with --format={kind}, which has a file for each thousand images")
        self.outdir, self.kind, self.format = outdir, kind, FORMATS[kind]
        self.archives = self.format.size > 1
        self.seeds = [*dict.fromkeys(seeds)]
        starts = range(0, len(self.seeds), self.format.size)
        self.groups = [self.seeds[start : start + self.format.size] for start in starts]  # of each file
        names = (image_name(group[0], subdirs) for group in self.groups)
        self.paths = [(outdir / name).with_suffix(f".{kind}") for name in names]
        self._path_of = {seed: path for path, group in zip(self.paths, self.groups) for seed in group}

    def share(self, batch: int, index: int, total: int) -> list[int]:
        """The seeds of one of `total` processes: a run of whole files, and of PNG files a run of whole batches."""
        units = deal_seeds(self.seeds, batch) if not self.archives else self.groups
        own = units[index * len(units) // total : (index + 1) * len(units) // total]
        return [seed for unit in own for seed in unit]

    def read(self, path: Path) -> dict[str, Callable[[], bytes]]:
        """What gives each PNG in a file, by its name; nothing if there is no file."""
        if not path.is_file():
            return {}
        if not self.archives:
            return {path.name: path.read_bytes}
        listing = open_archive(str(path))
        return {name: lambda name=name: listing.read(name) for name in listing.images}  # type: ignore[misc]

    def contents(self) -> dict[int, bytes]:
        """All PNGs by seed."""
        found = {path: self.read(path) for path in self.paths}
        return {seed: found[self._path_of[seed]][image_name(seed)]() for seed in self.seeds}

    def prepare(self, seeds: Collection[int], mark: str, keep: bool) -> tuple[set[int], int]:
        """(seeds whose images are there already and may be kept, number of files that will be replaced).

        UserError for images made otherwise, for archives with images of other seeds, and for files of other kinds.
        """
        finished: set[int] = set()
        replaced = 0
        for path, group in self._files_of(seeds):
            found = self.read(path) if keep or self.archives else {}
            if others := found.keys() - {image_name(seed) for seed in group}:
                raise UserError(
                    f"{path} also holds {some(sorted(others))}; expected --seeds that include them, or another --outdir"
                )
            pngs = [stored(read) for read in found.values()] if keep else []
            if any(png.text != mark for png in pngs):
                raise UserError(
                    f"{path} was not made by edm-fast generate with these options and this network; "
                    "expected another --outdir, or no --skip-existing"
                )
            if len(pngs) == len(group) and all(png.whole for png in pngs):
                finished.update(group)
            else:
                replaced += check_output(path, self.kind)
        if keep:
            self._remove_leftovers({path for path, group in self._files_of(seeds) if group[0] not in finished})
        return finished, replaced

    def _files_of(self, seeds: Collection[int]) -> list[tuple[Path, list[int]]]:
        own = {*seeds}
        return [(path, group) for path, group in zip(self.paths, self.groups) if group[0] in own]

    def _remove_leftovers(self, paths: Collection[Path]) -> None:
        """Delete the temporary files of a killed run (see files.atomic_write) that were to become `paths`."""
        for folder in {path.parent for path in paths}:
            for leftover in folder.glob(f".*.{self.kind}.*.tmp"):
                if folder / f"{leftover.name[1:].split(f'.{self.kind}.')[0]}.{self.kind}" in paths:
                    leftover.unlink(missing_ok=True)

    def write(self, images: Iterable[tuple[int, torch.Tensor]], mark: str, labels: Labels) -> None:
        """Write images (C, R, R) in the order of the seeds, each file when the last of its images is there."""
        waiting: dict[Path, list[tuple[int, bytes]]] = {}
        size = {path: len(group) for path, group in zip(self.paths, self.groups)}
        for seed, x in images:
            if not x.isfinite().all():
                raise UserError(
                    f"seed {seed}: the image is not finite; expected another --precision or sampler options"
                )
            path = self._path_of[seed]
            rows = waiting.setdefault(path, [])
            rows.append((seed, pictures.encode_png(to_uint8(x[None])[0], mark)))
            if len(rows) == size[path]:
                classes = labels([seed for seed, _ in rows]) if self.archives else [None]
                with naming(path):
                    named = [(image_name(seed), data, label) for (seed, data), label in zip(rows, classes)]
                    self.format.write(path, named)
                del waiting[path]

    def faults(self, seeds: Collection[int], marks: Collection[str]) -> Faults:
        """marks: those that images may have; of several the one that most have."""
        pngs: dict[int, Stored] = {}
        for path, group in self._files_of(seeds):
            try:
                found = self.read(path)
            except UserError:  # a damaged archive
                found = dict.fromkeys(map(image_name, group), lambda: b"")
            pngs |= {seed: stored(found[image_name(seed)]) for seed in group if image_name(seed) in found}
        known = Counter(png.text for png in pngs.values() if png.text in marks)
        right = Stored(known.most_common(1)[0][0] if known else "none", True)
        missing = [seed for seed in seeds if seed not in pngs]
        return Faults(missing, [seed for seed, png in pngs.items() if png != right], self._foreign())

    def _foreign(self) -> list[str]:
        """Names of images in the folder that are not of this run; pictures of many images are none of them."""
        if not self.outdir.is_dir():
            return []
        own = {path.relative_to(self.outdir).as_posix(): group for path, group in zip(self.paths, self.groups)}
        names = [name for name in FolderSource(str(self.outdir)).images if name not in own]
        if self.archives:
            for path in sorted(filter(is_archive, self.outdir.iterdir())):
                expected = {image_name(seed) for seed in own.get(path.name, ())}
                with contextlib.suppress(UserError):  # a damaged one; wrong if it is of this run
                    names += [f"{path.name}/{name}" for name in open_archive(str(path)).images if name not in expected]
        return names
