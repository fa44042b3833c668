"""The CIFAR-10 tarball, python version. Its batches are pickles, of which only containers and arrays are read."""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edm_fast.errors import UserError, one_line

BATCHES = 5
TRAIN_IMAGES = 50000
MAX_BATCH_BYTES = 1 << 28  # a batch has 31 MB; a larger member is not one


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for codecs.encode, by which Python 3 writes bytes into old pickle protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


class _Record:
    """Stands in for numpy's arrays and dtypes: keeps arguments and state, so that nothing of a file reaches numpy."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _array(value: Any) -> np.ndarray:
    """The integers of a recorded array, of pickle protocol 5 or older, or of a list."""
    if not isinstance(value, _Record):
        return np.asarray(value)
    if value.state:
        _, shape, dtype, fortran, raw = value.state
        order: Any = "F" if fortran else "C"
    else:
        raw, dtype, shape, order = value.args
    kind = np.dtype(dtype.args[0]).newbyteorder(dtype.state[1])
    if kind.kind not in "iu":
        raise pickle.UnpicklingError(f"dtype {dtype.args[0]!r} is not allowed")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # the text of a pickle from Python 2
    return np.frombuffer(raw, kind).reshape(shape, order=order)


class _ArrayUnpickler(pickle.Unpickler):
    """Plain containers and integer arrays; every other name in the file is refused, so nothing of it runs."""

    ARRAYS = re.compile(r"numpy\.(ndarray|dtype|_?core\.(multiarray\._reconstruct|numeric\._frombuffer))")

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == "_codecs.encode":
            return _encode
        if not self.ARRAYS.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a CIFAR-10 batch has no use for")
        return _Record


def _read_batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) uint8 and (n,) int64 of one pickled batch {"data": (n, 3072), "labels": [...]}."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        images, labels = _array(batch["data"]), _array(batch["labels"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"cannot read {where}: {one_line(error)}; expected a CIFAR-10 batch") from None
    good_images = images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 3 * 32 * 32
    good_labels = labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
    if not good_images or not good_labels:
        raise UserError(f"{where} holds arrays of other shapes; expected data (n, 3072) uint8 and n integer labels")
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def read_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All training images (50000, 3, 32, 32) uint8 and labels (50000,) int64, read without unpacking to disk."""
    images, labels = [], []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for number in range(1, BATCHES + 1):
                member = archive.getmember(f"cifar-10-batches-py/data_batch_{number}")
                file = archive.extractfile(member) if member.isreg() and member.size <= MAX_BATCH_BYTES else None
                if file is None:
                    raise KeyError(f"data_batch_{number} is not a file of sensible size")
                part = _read_batch(file.read(), f"data_batch_{number} in {path}")
                images.append(part[0])
                labels.append(part[1])
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"cannot read {path}: {text}; expected the python version of CIFAR-10") from None
    count = sum(map(len, labels))
    if count != TRAIN_IMAGES:
        raise UserError(f"{path} holds {count} training images; expected {TRAIN_IMAGES}")
    return np.concatenate(images), np.concatenate(labels)
