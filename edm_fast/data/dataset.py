"""Images of a folder or a zip archive, with optional labels from dataset.json, as uint8 arrays (C, H, W)."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

from edm_fast.data._sources import DAMAGED
from edm_fast.errors import UserError, UserOSError
from edm_fast.files import user_path

LABEL_FILE = "dataset.json"
MAX_CLASS = 999_999  # a label becomes a one-hot vector of this length; networks take no more classes either


@dataclass
class Details:
    """Where an item comes from: index among all files, whether it is flipped left-right, label as in the file."""

    raw_idx: int
    xflip: bool
    raw_label: np.ndarray


class FolderSource:
    """Files below a folder, named by their path relative to it with forward slashes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.names = sorted(
            os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/")
            for folder, _, files in os.walk(path)
            for name in files
        )

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()


class ZipSource:
    """Members of a zip archive, opened once per process: forked readers must not share a file position."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle: zipfile.ZipFile | None = None
        self._pid = -1
        self.names = sorted(name for name in self._zip().namelist() if not name.endswith("/"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_pid": -1}

    def _zip(self) -> zipfile.ZipFile:
        if self._handle is None or self._pid != os.getpid():
            try:
                self._handle = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise UserOSError(
                    f"{self.path} is not a readable zip archive ({error}); expected a complete .zip"
                ) from error
            self._pid = os.getpid()
        return self._handle

    def read(self, name: str) -> bytes:
        archive = self._zip()
        try:
            return archive.read(name)
        except DAMAGED as error:
            raise UserOSError(f"{self.path}: cannot read member {name} ({error}); the archive is damaged") from error


def open_source(path: str) -> FolderSource | ZipSource:
    """The folder or .zip at `path`; anything else is an error."""
    if os.path.isdir(path):
        return FolderSource(path)
    if not os.path.exists(path):
        raise UserOSError(f"data set {path} does not exist; expected a folder or a .zip file")
    if os.path.splitext(path)[1].lower() == ".zip":
        return ZipSource(path)
    raise UserOSError(f"data set {path} is neither a folder nor a .zip file")


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Image file -> uint8 (C, H, W); gray gets one channel, palettes become colours."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as file:
            image: PIL.Image.Image = file
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
            pixels = np.array(image.convert("L") if image.mode == "1" else image)
    except DAMAGED as error:
        raise UserOSError(f"cannot decode image {name} ({error}); expected a whole image file") from error
    if pixels.dtype != np.uint8:
        raise UserOSError(f"image {name} has {pixels.dtype} samples; expected 8 bits per channel")
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def parse_labels(text: bytes, names: list[str], where: str) -> np.ndarray | None:
    """Labels of `names` from dataset.json: int64 (n,) classes or float32 (n, dim) vectors; None if it has none."""
    try:
        table = json.loads(text)["labels"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserOSError(f'{where} is not valid; expected {{"labels": [[name, label], ...]}}') from error
    if table is None:
        return None
    try:
        table = dict(table)
    except (TypeError, ValueError) as error:
        raise UserOSError(f'{where}: "labels" is not a list of [name, label] pairs') from error
    missing = [name for name in names if name not in table]
    if missing:
        raise UserOSError(f"{where} has no label for {missing[0]} ({len(missing)} of {len(names)} images lack one)")
    values = [table[name] for name in names]
    if all(type(value) is int for value in values):
        if min(values) < 0:
            raise UserOSError(f"{where} has the class label {min(values)}; expected integers from 0 up")
        if max(values) > MAX_CLASS:
            raise UserOSError(f"{where} has a class label above {MAX_CLASS}; expected integers from 0 up")
        return np.array(values, dtype=np.int64)
    try:
        labels = np.array(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        labels = np.zeros([0], dtype=np.float32)
    if labels.ndim != 2:
        raise UserOSError(
            f"{where} mixes kinds of labels; expected all integers, or all lists of numbers of one length"
        )
    if not np.isfinite(labels).all():
        raise UserOSError(f"{where} has label vectors with values that are not finite numbers")
    return labels


class ImageFolderDataset(torch.utils.data.Dataset):
    """Item i is (image uint8 (C, H, W), label float32 (label_dim,)); integer labels become one-hot vectors.

    max_size keeps a random subset (sorted), drawn from random_seed; xflip then appends a mirrored copy of every item.
    cache keeps decoded images in memory. use_pyspng is accepted for compatibility; Pillow decodes everything.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int | None = None,
        max_size: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        random_seed: int = 0,
        cache: bool = False,
        use_pyspng: bool = True,
    ) -> None:
        self.path = user_path(path)
        self.name = os.path.splitext(os.path.basename(os.path.normpath(self.path)))[0]
        self._source = open_source(self.path)
        PIL.Image.init()
        known = set(PIL.Image.EXTENSION)
        self.image_names = [n for n in self._source.names if os.path.splitext(n)[1].lower() in known]
        if not self.image_names:
            raise UserOSError(f"no image files in {self.path}; expected PNG, JPEG or another format that Pillow reads")
        self._wants_labels = use_labels
        self._all_labels: np.ndarray | None = None
        self._label_dim: int | None = None
        self._cache: dict[int, np.ndarray] | None = {} if cache else None

        self.image_shape = list(decode_image(self._source.read(self.image_names[0]), self.image_names[0]).shape)
        if resolution is not None and self.image_shape[1:] != [resolution, resolution]:
            height, width = self.image_shape[1:]
            raise UserOSError(f"images of {self.path} are {width}x{height}; expected {resolution}x{resolution}")

        kept = np.arange(len(self.image_names), dtype=np.int64)
        if max_size is not None and max_size < kept.size:
            np.random.RandomState(random_seed % (1 << 31)).shuffle(kept)
            kept = np.sort(kept[:max_size])
        self._file_of_item = np.tile(kept, 2) if xflip else kept
        self._flipped = np.arange(self._file_of_item.size) >= kept.size

    def __getstate__(self) -> dict[str, Any]:
        # readers of other processes decode and parse for themselves
        return {**self.__dict__, "_all_labels": None, "_cache": None if self._cache is None else {}}

    def __len__(self) -> int:
        return self._file_of_item.size

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        image = self._raw_image(int(self._file_of_item[idx]))
        if self._flipped[idx]:
            image = image[:, :, ::-1]
        return image.copy(), self.get_label(idx)

    def _raw_image(self, raw_idx: int) -> np.ndarray:
        if self._cache is not None and raw_idx in self._cache:
            return self._cache[raw_idx]
        name = self.image_names[raw_idx]
        image = decode_image(self._source.read(name), name)
        if list(image.shape) != self.image_shape:
            raise UserOSError(
                f"image {name} of {self.path} has shape {list(image.shape)}; expected {self.image_shape} like the first"
            )
        if self._cache is not None:
            self._cache[raw_idx] = image
        return image

    @property
    def raw_labels(self) -> np.ndarray:
        """Labels of all files: int64 (n,) or float32 (n, dim); float32 (n, 0) without labels."""
        if self._all_labels is None:
            labels = None
            if self._wants_labels and LABEL_FILE in self._source.names:
                where = f"{LABEL_FILE} of {self.path}"
                labels = parse_labels(self._source.read(LABEL_FILE), self.image_names, where)
            self._all_labels = np.zeros([len(self.image_names), 0], dtype=np.float32) if labels is None else labels
        return self._all_labels

    def get_label(self, idx: int) -> np.ndarray:
        """Label of item idx: float32 (label_dim,)."""
        label = self.raw_labels[self._file_of_item[idx]]
        if label.dtype != np.int64:
            return label.copy()
        onehot = np.zeros([self.label_dim], dtype=np.float32)
        onehot[label] = 1
        return onehot

    def get_details(self, idx: int) -> Details:
        raw_idx = int(self._file_of_item[idx])
        return Details(raw_idx, bool(self._flipped[idx]), self.raw_labels[raw_idx].copy())

    @property
    def resolution(self) -> int:
        _, height, width = self.image_shape
        if height != width:
            raise UserError(f"images of {self.path} are {width}x{height}; expected squares")
        return height

    @property
    def num_channels(self) -> int:
        return self.image_shape[0]

    @property
    def label_shape(self) -> list[int]:
        return [self.label_dim]

    @property
    def label_dim(self) -> int:
        """Length of a label vector; for classes the largest of the whole file set plus one."""
        if self._label_dim is None:
            raw = self.raw_labels
            self._label_dim = int(raw.max()) + 1 if raw.dtype == np.int64 else raw.shape[1]
        return self._label_dim

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        return self.has_labels and self.raw_labels.dtype == np.int64
