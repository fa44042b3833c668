"""What the dataset conversion reads: folders, zips, the CIFAR-10 tarball, MNIST idx files, LSUN lmdb.

open_source gives the number of images, an iterator of (image, label): (H, W) or (H, W, C) uint8, label or None, and the
numbers of classes by name, where they are known.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edm_fast import pictures
from edm_fast.data._cifar import read_cifar10
from edm_fast.data._labels import read_labels
from edm_fast.data._listing import Survey, is_archive, open_listing
from edm_fast.data._transforms import to_rgb
from edm_fast.errors import BROKEN, UserError, UserOSError, one_line
from edm_fast.files import user_path

Report = Callable[[str], None]
Source = tuple[int, Iterator[tuple[np.ndarray, Any]], dict[str, int]]
MNIST_TRAIN_IMAGES = 60000


def image_files(path: Path, max_images: int | None = None, report: Report = print) -> Source:
    """The images of a zip by name, of a folder by path, component by component. Reports the line about them."""
    listing = open_listing(path)
    names = sorted(listing.images, key=lambda name: name.split("/")) if path.is_dir() else listing.images
    names = names[:max_images]
    labels = read_labels(listing, names, folders=True)
    survey = Survey(listing, names)
    report(survey.line(labels.text() + (", so that the result has no labels" if labels.missing() else "")))
    if labels.values and labels.values.count(None) == len(names):
        raise UserOSError(f"no label of {path} is for an image that is there: {labels.missing()}")
    for (_, _, channels), alike in survey.shapes.items():
        if channels not in (1, 3):
            raise UserError(f"{alike[0]} of {path} has {channels} channels; expected 1 (gray) or 3 (RGB)")
    pairs = zip(names, labels.values or [None] * len(names), strict=True)
    return len(names), ((listing.picture(name), label) for name, label in pairs), labels.classes


def arrays(images: np.ndarray, labels: np.ndarray, max_images: int | None) -> Source:
    """Images (n, H, W) or (n, H, W, 3) uint8 with n integer labels."""
    return len(labels[:max_images]), zip(images[:max_images], labels[:max_images].tolist(), strict=True), {}


def _read_idx(path: Path, magic: int, dims: int) -> np.ndarray:
    """An idx file of unsigned bytes: big-endian magic number (0x0800 + dims), sizes, data."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserOSError(f"no file {path}; expected it beside the other MNIST file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; expected a gzipped idx file") from None
    header = 4 * (1 + dims)
    numbers = [int.from_bytes(data[i : i + 4], "big") for i in range(0, header, 4)]
    if len(data) < header or numbers[0] != magic or len(data) - header != int(np.prod(numbers[1:], dtype=object)):
        raise UserError(f"{path} is not an idx file of {dims}-dimensional unsigned bytes, or is cut short")
    return np.frombuffer(data, np.uint8, offset=header).reshape(numbers[1:])


def read_mnist(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """28x28 digits zero-padded by 2: (60000, 32, 32) uint8, and labels (60000,) from the file beside `path`."""
    images = _read_idx(path, 2051, 3)
    labels = _read_idx(path.with_name(path.name.replace("images-idx3", "labels-idx1")), 2049, 1)
    if images.shape != (MNIST_TRAIN_IMAGES, 28, 28) or len(labels) != len(images):
        raise UserError(
            f"{path} holds {len(images)} images of {images.shape[2]}x{images.shape[1]} and {len(labels)} labels; "
            f"expected {MNIST_TRAIN_IMAGES} of 28x28 and as many labels"
        )
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels


def _decode_lmdb(value: bytes) -> np.ndarray:
    """(H, W, 3) uint8: OpenCV where it is installed (BGR to RGB), as published, else the decoder of the package."""
    try:
        import cv2
    except BROKEN:
        cv2 = None
    image = cv2 and cv2.imdecode(np.frombuffer(value, dtype=np.uint8), 1)
    return to_rgb(pictures.decode(value, "in an lmdb")) if image is None else image[:, :, ::-1]


def lsun_images(path: Path, max_images: int | None = None, report: Report = print) -> Source:
    """The values of an LSUN lmdb folder, by key; no labels. Entries that do not decode are reported and left out."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{path} is an lmdb folder, which needs the package lmdb; try: pip install lmdb") from None
    try:
        env = lmdb.open(str(path), readonly=True, lock=False)
        entries = env.stat()["entries"]
    except lmdb.Error as error:
        raise UserOSError(f"cannot read {path}: {one_line(error)}; expected an lmdb folder with data.mdb") from None

    def items() -> Iterator[tuple[np.ndarray, Any]]:
        with env, env.begin(write=False) as transaction:
            for key, value in transaction.cursor():
                try:
                    image = _decode_lmdb(value)
                except Exception as error:  # OpenCV has errors of its own
                    report(f"skipped entry {key!r}: {one_line(error)}")
                    continue
                yield image, None

    return entries if max_images is None else min(entries, max_images), islice(items(), max_images), {}


def open_source(source: str | os.PathLike[str], max_images: int | None = None, report: Report = print) -> Source:
    """The reader for `source`, chosen by its kind and name in the published order."""
    path = Path(user_path(source))
    if max_images is not None and max_images < 1:
        raise UserError(f"max-images is {max_images}; expected at least 1")
    if path.is_dir():
        if path.name.endswith("_lmdb") or path.resolve().name.endswith("_lmdb"):
            return lsun_images(path, max_images, report)
        return image_files(path, max_images, report)
    if not path.is_file():
        raise UserOSError(f"no file or folder {path}; expected the source of a dataset")
    if path.name == "cifar-10-python.tar.gz":
        images, labels = read_cifar10(path)  # (n, 3, 32, 32) uint8, (n,) int64
        return arrays(images.transpose(0, 2, 3, 1), labels, max_images)
    if path.name == "train-images-idx3-ubyte.gz":
        return arrays(*read_mnist(path), max_images)
    if is_archive(path):
        return image_files(path, max_images, report)
    raise UserError(
        f"{path} is of no known kind; expected a folder, a zip or tar, cifar-10-python.tar.gz, "
        "train-images-idx3-ubyte.gz or a folder named *_lmdb"
    )
