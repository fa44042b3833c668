"""What the dataset conversion reads: folders, zips, the CIFAR-10 tarball, MNIST idx files, LSUN lmdb.

open_source gives the number of images and an iterator of (image, label): (H, W) or (H, W, C) uint8, label or None.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image

from edm_fast.data._cifar import read_cifar10
from edm_fast.errors import UserError, UserOSError

Source = tuple[int, Iterator[tuple[np.ndarray, Any]]]
Report = Callable[[str], None]
MNIST_TRAIN_IMAGES = 60000
# what Pillow, zlib and zipfile raise for damaged files; RuntimeError: an encrypted member, a method nobody knows
DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    LookupError,
    AttributeError,
    struct.error,
)
DAMAGED += (zlib.error, zipfile.BadZipFile, PIL.Image.DecompressionBombError)


def is_image_name(name: str) -> bool:
    """True if Pillow knows the extension, whatever its case."""
    return os.path.splitext(name)[1].lower() in PIL.Image.registered_extensions()


def decode_image(file: IO[bytes] | io.BytesIO, name: str) -> np.ndarray:
    """(H, W) uint8 of a gray file, (H, W, C) of others. Palettes and CMYK become RGB, black-and-white becomes gray."""
    try:
        with PIL.Image.open(file) as image:
            pixels = np.array(_plain_mode(image))
    except MemoryError:
        raise UserError(f"image {name} is too large for the memory") from None
    except PIL.UnidentifiedImageError:  # its text names a Python object
        raise UserError(f"cannot read image {name}: of no format that Pillow knows, or empty") from None
    except DAMAGED as error:
        raise UserError(f"cannot read image {name}: {_one_line(error)}; expected an undamaged image file") from None
    if pixels.dtype != np.uint8:
        raise UserError(f"image {name} holds {pixels.dtype} pixels; expected 8 bits per channel")
    return pixels


def _plain_mode(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        return image.convert("RGBA")  # four channels: refused later rather than losing the transparency
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("RGB")
    return image


def parse_labels(data: bytes, where: str) -> dict[str, Any]:
    """{name: label} of a dataset.json; empty if its labels are null."""
    try:
        table = json.loads(data)
        labels = table["labels"]
        if labels is None:
            return {}
        return {str(name).replace("\\", "/"): label for name, label in labels}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'cannot read {where}: {_one_line(error)}; expected {{"labels": [[name, label], ...]}} or null labels'
        ) from None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _limited(names: list[Any], max_images: int | None) -> list[Any]:
    return names if max_images is None else names[:max_images]


def open_folder(path: Path, max_images: int | None = None) -> Source:
    """All images below a folder, by path, component by component. Labels from dataset.json or the top-level folders."""

    def refuse(error: OSError) -> None:
        raise error

    found = [Path(top) / name for top, _, names in os.walk(path, onerror=refuse) for name in names]
    files = sorted(file for file in found if is_image_name(file.name))
    names = [file.relative_to(path).as_posix() for file in files]
    table = path / "dataset.json"
    labels = parse_labels(table.read_bytes(), str(table)) if table.is_file() else {}
    if not labels:
        tops = [name.split("/")[0] if "/" in name else "" for name in names]
        classes = {top: index for index, top in enumerate(sorted(set(tops)))}
        if len(classes) > 1:
            labels = {name: classes[top] for name, top in zip(names, tops, strict=True)}

    def items() -> Iterator[tuple[np.ndarray, Any]]:
        for name in _limited(names, max_images):
            with open(path / name, "rb") as file:
                yield decode_image(file, str(path / name)), labels.get(name)

    return len(_limited(names, max_images)), items()


def open_zip(path: Path, max_images: int | None = None) -> Source:
    """All images of a zip, by name. Labels from dataset.json only."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            labels = (
                parse_labels(archive.read("dataset.json"), f"dataset.json in {path}")
                if "dataset.json" in members
                else {}
            )
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; expected an undamaged zip file") from None
    names = _limited(sorted(name for name in members if is_image_name(name)), max_images)

    def items() -> Iterator[tuple[np.ndarray, Any]]:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                try:
                    data = archive.read(name)
                except DAMAGED as error:
                    raise UserError(f"cannot read {name} in {path}: {_one_line(error)}") from None
                yield decode_image(io.BytesIO(data), f"{name} in {path}"), labels.get(name)

    return len(names), items()


def cifar10_images(path: Path, max_images: int | None = None) -> Source:
    """The five training batches: (32, 32, 3) images with integer labels."""
    images, labels = read_cifar10(path)  # (n, 3, 32, 32) uint8, (n,) int64
    count = len(_limited(labels.tolist(), max_images))
    return count, ((images[i].transpose(1, 2, 0), int(labels[i])) for i in range(count))


def _read_idx(path: Path, magic: int, dims: int) -> np.ndarray:
    """An idx file of unsigned bytes: big-endian magic number (0x0800 + dims), sizes, data."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserOSError(f"no file {path}; expected it beside the other MNIST file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}; expected a gzipped idx file") from None
    header = 4 * (1 + dims)
    numbers = [int.from_bytes(data[i : i + 4], "big") for i in range(0, header, 4)]
    if len(data) < header or numbers[0] != magic or len(data) - header != int(np.prod(numbers[1:], dtype=object)):
        raise UserError(f"{path} is not an idx file of {dims}-dimensional unsigned bytes, or is cut short")
    return np.frombuffer(data, np.uint8, offset=header).reshape(numbers[1:])


def mnist_images(path: Path, max_images: int | None = None) -> Source:
    """28x28 digits zero-padded by 2 to (32, 32), with integer labels from the file beside `path`."""
    images = _read_idx(path, 2051, 3)
    labels = _read_idx(path.with_name(path.name.replace("images-idx3", "labels-idx1")), 2049, 1)
    if images.shape != (MNIST_TRAIN_IMAGES, 28, 28) or len(labels) != len(images):
        raise UserError(
            f"{path} holds {len(images)} images of {images.shape[2]}x{images.shape[1]} and {len(labels)} labels; "
            f"expected {MNIST_TRAIN_IMAGES} of 28x28 and as many labels"
        )
    count = len(_limited(labels.tolist(), max_images))
    return count, ((np.pad(images[i], 2), int(labels[i])) for i in range(count))


def _decode_lmdb(value: bytes) -> np.ndarray:
    """(H, W, 3) uint8: OpenCV where it is installed (BGR to RGB), as published, else Pillow."""
    try:
        import cv2
    except ImportError:
        return np.asarray(PIL.Image.open(io.BytesIO(value)).convert("RGB"))
    image = cv2.imdecode(np.frombuffer(value, dtype=np.uint8), 1)
    if image is None:
        return np.asarray(PIL.Image.open(io.BytesIO(value)).convert("RGB"))
    return image[:, :, ::-1]


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
        raise UserOSError(f"cannot read {path}: {_one_line(error)}; expected an lmdb folder with data.mdb") from None

    def items() -> Iterator[tuple[np.ndarray, Any]]:
        done = 0
        with env, env.begin(write=False) as transaction:
            for key, value in transaction.cursor():
                if max_images is not None and done >= max_images:
                    return
                try:
                    image = _decode_lmdb(value)
                except Exception as error:  # OpenCV has errors of its own
                    report(f"skipped entry {key!r}: {_one_line(error)}")
                    continue
                done += 1
                yield image, None

    return entries if max_images is None else min(entries, max_images), items()


def open_source(source: str | os.PathLike[str], max_images: int | None = None, report: Report = print) -> Source:
    """The reader for `source`, chosen by its kind and name in the published order."""
    path = Path(source)
    if max_images is not None and max_images < 1:
        raise UserError(f"max-images is {max_images}; expected at least 1")
    if path.is_dir():
        if path.name.endswith("_lmdb") or path.resolve().name.endswith("_lmdb"):
            return lsun_images(path, max_images, report)
        return open_folder(path, max_images)
    if not path.is_file():
        raise UserOSError(f"no file or folder {path}; expected the source of a dataset")
    if path.name == "cifar-10-python.tar.gz":
        return cifar10_images(path, max_images)
    if path.name == "train-images-idx3-ubyte.gz":
        return mnist_images(path, max_images)
    if path.suffix.lower() == ".zip":
        return open_zip(path, max_images)
    raise UserError(
        f"{path} is of no known kind; expected a folder, a zip, cifar-10-python.tar.gz, "
        "train-images-idx3-ubyte.gz or a folder named *_lmdb"
    )
