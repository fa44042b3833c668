"""The one listing of the files of a folder or zip: which are images, what they hold, and which are left out."""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np

from edm_fast import pictures
from edm_fast.errors import UserError, UserOSError, count, one_line, some
from edm_fast.files import user_path
from edm_fast.networks.sides import side_fault
from edm_fast.pictures import COLOURS, DAMAGED, Header

Shape = tuple[int, int, int]  # width, height, channels
LABEL_FILE = "dataset.json"
LATENT_CHANNELS = 8  # mean and deviation of 4 channels each, see edm_fast.data.encoders
MAX_MEMBER = 1 << 30  # bytes; a zip can claim members of any size
# what systems put beside images: macOS, Windows, Synology
LITTER = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
OWN_NAME = re.compile(r"img\d{8}\.png$")  # written by the conversion, which leaves grids out


def plain_name(name: str) -> str:
    """One spelling of a relative name: forward slashes, no "./" or "//", composed Unicode."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")).lstrip("/"))


def is_array_name(name: str) -> bool:
    return name.lower().endswith(".npy")


def array_shape(file: IO[bytes], what: str) -> Shape:
    """(width, height, channels) of a .npy file of (C, H, W) numbers, by its header. UserError for others."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if len(shape) != 3 or dtype.hasobject or dtype.kind not in "fiub":
        raise UserError(f"{what} is an array of {dtype} {shape}; expected numbers of shape (C, H, W)")
    return shape[2], shape[1], shape[0]


class Listing:
    """`images`: names of the images, sorted as text; `tables`: those of every dataset.json; `left_out`: other files.

    arrays: whether .npy files of (C, H, W) count as images.
    """

    def __init__(self, path: str, arrays: bool = False) -> None:
        self.path = path
        self.arrays = arrays
        self.images: list[str] = []
        self.tables: list[str] = []
        self.left_out: Counter[str] = Counter()
        for name, kind in sorted(self._files()):
            kind = kind or self._kind(name)
            if kind in ("", LABEL_FILE):
                (self.tables if kind else self.images).append(name)
            else:
                self.left_out[kind] += 1

    def _files(self) -> Iterator[tuple[str, str]]:
        """Names, and the kind of those that are no regular files (else "")."""
        raise NotImplementedError

    def _open(self, name: str) -> IO[bytes]:
        raise NotImplementedError

    def _kind(self, name: str) -> str:
        """What a file is left out as; "" for an image."""
        parts = plain_name(name).split("/")
        if any((part.startswith(".") and part != "..") or part.lower() in LITTER for part in parts):
            return "hidden"
        extension = os.path.splitext(name)[1]
        if parts[-1] == LABEL_FILE:
            return LABEL_FILE
        if self.arrays and is_array_name(name):
            return ""
        if not pictures.is_picture_name(name):
            return extension[1:].upper() or "without extension"
        if extension.lower() == ".png" and not OWN_NAME.search(name):
            with contextlib.suppress(UserError), self.open(name) as file:  # a damaged one is reported when it is read
                return "grid" if pictures.is_grid(file.read(512)) else ""
        return ""

    def problems(self) -> list[str]:
        """Why these files are no set of images."""
        found = []
        names = Counter(map(plain_name, self.images + self.tables))
        if len(names) < names.total():
            found.append(f"names that occur more than once: {some(name for name in names if names[name] > 1)}")
        if not self.images:
            left_out = f" ({self.left_out_text()})" if self.left_out else ""
            found.append(f"no image files in {self.path}{left_out}; expected PNG, JPEG or another format of pictures")
        return found

    def left_out_text(self) -> str:
        return "left out: " + ", ".join(f"{number} {kind}" for kind, number in self.left_out.most_common())

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The file of that name. Whatever goes wrong while it is read is told in one line."""
        try:
            with self._open(name) as file:
                yield file
        except UserError:
            raise
        except DAMAGED as error:
            raise UserOSError(f"cannot read {name} in {self.path}: {one_line(error)}") from error

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def header(self, name: str) -> Header:
        with self.open(name) as file:
            if is_array_name(name):
                return Header(array_shape(file, f"{name} in {self.path}"), False, "")
            return pictures.header(file, f"{name} in {self.path}")

    def array(self, name: str) -> np.ndarray:
        """(C, H, W) of a .npy file, of its own type."""
        with self.open(name) as file:
            array_shape(file, f"{name} in {self.path}")
        with self.open(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def picture(self, name: str) -> np.ndarray:
        """(H, W) or (H, W, C) uint8, see pictures.decode."""
        return pictures.decode(self.read(name), f"{name} in {self.path}")


class FolderSource(Listing):
    """Files below a folder, named by their path relative to it with forward slashes. Links are followed."""

    def _files(self, folder: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, str]]:
        top = os.path.join(self.path, folder)
        status = os.stat(top)
        place = (status.st_dev, status.st_ino)
        if place in above:
            yield folder.rstrip("/"), "link to a folder above it"
            return
        with os.scandir(top) as entries:
            for entry in entries:
                linked = entry.is_symlink()  # os.path answers for links that lead nowhere or in a circle
                if os.path.isdir(entry) if linked else entry.is_dir():
                    yield from self._files(f"{folder}{entry.name}/", (*above, place))
                else:  # a link that leads nowhere stands for a file that is missing, which is said when it is read
                    special = os.path.exists(entry) and not os.path.isfile(entry) if linked else not entry.is_file()
                    yield folder + entry.name, "special file" if special else ""

    def _open(self, name: str) -> IO[bytes]:
        return open(os.path.join(self.path, name), "rb")


class ZipSource(Listing):
    """Members of a zip archive, opened once per process: forked readers must not share a file position."""

    def __init__(self, path: str, arrays: bool = False) -> None:
        self._handle: zipfile.ZipFile | None = None
        self._pid = -1
        super().__init__(path, arrays)
        self.packed = sum(info.compress_type != 0 and not info.is_dir() for info in self._zip().infolist())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_pid": -1}

    def _zip(self) -> zipfile.ZipFile:
        if self._handle is None or self._pid != os.getpid():
            try:
                self._handle = zipfile.ZipFile(self.path)
            except DAMAGED as error:
                why = f"{self.path} is not a readable zip ({one_line(error)}); expected an undamaged zip file"
                raise UserOSError(why) from error
            self._pid = os.getpid()
        return self._handle

    def _files(self) -> Iterator[tuple[str, str]]:
        for info in self._zip().infolist():
            if not info.filename.endswith(("/", "\\")):
                yield info.filename, "link" if stat.S_ISLNK(info.external_attr >> 16) else ""

    def _open(self, name: str) -> IO[bytes]:
        size = self._zip().getinfo(name).file_size
        if size > MAX_MEMBER:
            raise UserOSError(f"{name} in {self.path} claims {size} bytes; expected at most {MAX_MEMBER}")
        return self._zip().open(name)


class TarSource(Listing):
    """Members of a tar archive that is not compressed. Their places are read once, and the file is opened each time."""

    def __init__(self, path: str, arrays: bool = False) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        super().__init__(path, arrays)

    def _files(self) -> Iterator[tuple[str, str]]:
        try:
            with open(self.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                file.seek(-tarfile.BLOCKSIZE, io.SEEK_END)
                if any(file.read()):  # it would pass for one of fewer members
                    raise EOFError("cut short")
                for member in archive:
                    if not member.isdir():
                        self._places[member.name] = (member.offset_data, member.size)
                        yield member.name, "" if member.isreg() and not member.issparse() else "link"
        except DAMAGED as error:
            why = f"{self.path} is not a readable tar archive ({one_line(error)}); expected one without compression"
            raise UserOSError(why) from error

    def _open(self, name: str) -> IO[bytes]:
        place, size = self._places[name]
        with open(self.path, "rb") as file:
            file.seek(place)
            data = file.read(size)
        if len(data) < size:
            raise EOFError("the archive is cut short")
        return io.BytesIO(data)


class ArchivesSource(Listing):
    """The images of all archives in a folder, as FILE.tar/NAME."""

    def __init__(self, path: str, archives: Iterable[str], arrays: bool = False) -> None:
        self._sources = {name: open_archive(os.path.join(path, name), arrays) for name in archives}
        super().__init__(path, arrays)

    def _files(self) -> Iterator[tuple[str, str]]:
        for archive, source in self._sources.items():
            self.left_out += source.left_out
            yield from ((f"{archive}/{name}", "") for name in source.images)

    def _kind(self, name: str) -> str:
        return ""  # the archive has looked

    def _open(self, name: str) -> IO[bytes]:
        archive, _, member = name.partition("/")
        return self._sources[archive]._open(member)


ARCHIVES: dict[str, type[ZipSource] | type[TarSource]] = {".zip": ZipSource, ".tar": TarSource}


def is_archive(path: str | os.PathLike[str]) -> bool:
    return os.path.splitext(path)[1].lower() in ARCHIVES and os.path.isfile(path)


def open_archive(path: str, arrays: bool = False) -> ZipSource | TarSource:
    return ARCHIVES[os.path.splitext(path)[1].lower()](path, arrays)


def open_listing(path: str | os.PathLike[str], strict: bool = True, arrays: bool = False) -> Listing:
    """The files of the folder, .zip or .tar at `path`, or of the archives in a folder that holds no images.

    arrays: whether .npy files count as images.

    UserOSError for anything else and, if strict, for problems.
    """
    path = user_path(path)
    if not os.path.exists(path):
        raise UserOSError(f"data set {path} does not exist; expected a folder or a .zip file")
    if not os.path.isdir(path) and not is_archive(path):
        raise UserOSError(f"{path} is neither a folder nor a .zip or .tar file; expected images in one of them")
    listing: Listing = FolderSource(path, arrays) if os.path.isdir(path) else open_archive(path, arrays)
    if isinstance(listing, FolderSource) and not listing.images:
        archives = sorted(entry.name for entry in os.scandir(path) if is_archive(entry) and entry.name[0] != ".")
        listing = ArchivesSource(path, archives, arrays) if archives else listing
    for problem in listing.problems() if strict else ():
        raise UserOSError(problem)
    return listing


def shape_text(shape: Shape) -> str:
    width, height, channels = shape
    return f"{width}x{height} {COLOURS.get(channels, f'with {channels} channels')}"


def fault(shape: Shape, halvings: int = 2) -> str:
    """Why a network that halves the side `halvings` times cannot be trained on such images; "" if it can."""
    width, height, channels = shape
    if width != height:
        return f"images are {width}x{height}, not square"
    if channels not in (1, 3, LATENT_CHANNELS):
        return f"images have {channels} channels; expected 1 (gray) or 3 (RGB)"
    return side_fault(width, halvings)


class Survey:
    """Names of images by shape, and how many of them hold more frames than the first, told by their headers."""

    def __init__(self, listing: Listing, names: Iterable[str] = ()) -> None:
        self.listing = listing
        self.shapes: dict[Shape, list[str]] = {}
        self.animated = 0
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        header = self.listing.header(name)
        self.shapes.setdefault(header.shape, []).append(name)
        self.animated += header.animated

    def line(self, labels: str) -> str:
        """As "500 images of 32x32 RGB; labels: dataset.json, 10 classes, 3 without; left out: 4 hidden, 1 PDF"."""
        shapes = sorted(self.shapes)
        kinds = f"{len(shapes)} kinds, " if len(shapes) > 1 else ""
        ends = " to ".join(shape_text(shape) for shape in dict.fromkeys(shapes[:1] + shapes[-1:]))
        number = count(sum(map(len, self.shapes.values())), "image")
        parts = [f"{number} of {kinds}{ends or 'no readable kind'}", labels]
        if self.animated:
            parts.append(f"only the first frame of {count(self.animated, 'image')}")
        return "; ".join([*parts, self.listing.left_out_text()] if self.listing.left_out else parts)
