"""Writing a dataset to a folder or a stored zip: complete, or not there at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from edm_fast.errors import UserOSError
from edm_fast.files import atomic_write, link_target, umask

Write = Callable[[str, bytes], None]


def member_name(index: int) -> str:
    """`00000/img00000042.png` for image 42: the first five of the eight digits name the folder."""
    digits = f"{index:08d}"
    return f"{digits[:5]}/img{digits}.png"


def encode_png(image: np.ndarray) -> bytes:
    """PNG without compression of an image (H, W), (H, W, 1) or (H, W, 3) uint8; modes L and RGB."""
    image = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="png", compress_level=0, optimize=False)
    return buffer.getvalue()


def encode_labels(labels: list[tuple[str, Any]]) -> bytes:
    """The text of dataset.json; the labels are null as soon as one image lacks its own."""
    complete = all(label is not None for _, label in labels)
    return json.dumps({"labels": [list(pair) for pair in labels] if complete else None}).encode()


def check_dest(dest: str | os.PathLike[str]) -> Path:
    """The destination as a path. A folder has to be empty or absent; a zip may exist and is then replaced."""
    path = link_target(dest)
    if path.suffix.lower() == ".zip":
        if path.is_dir():
            raise UserOSError(f"destination {path} is a folder; expected the name of a zip file")
    elif path.is_dir():
        if any(path.iterdir()):
            raise UserOSError(f"destination folder {path} is not empty; expected an empty or absent folder")
    elif path.exists():
        raise UserOSError(f"destination {path} is a file; expected a folder or a name that ends in .zip")
    return path


@contextlib.contextmanager
def output_at(dest: str | os.PathLike[str]) -> Iterator[Write]:
    """Yield write(name, data). What was written appears under `dest` only when the block ends without an error."""
    path = check_dest(dest)
    with _open_zip(path) if path.suffix.lower() == ".zip" else _open_folder(path) as write:
        yield write


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[Write]:
    with atomic_write(path, kind="zip") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        # ZipInfo's fixed date of 1980 makes equal inputs give equal bytes
        yield lambda name, data: archive.writestr(_zip_info(name), data)


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return info


@contextlib.contextmanager
def _open_folder(path: Path) -> Iterator[Write]:
    # an existing folder may be a mount point or the current one, so it is filled rather than replaced
    existed = path.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path if existed else path.parent, prefix=f".{path.name}.", suffix=".tmp"))

    def write(name: str, data: bytes) -> None:
        target = temporary / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    try:
        yield write
        temporary.chmod(0o777 & ~umask())
        if existed:
            for child in sorted(temporary.iterdir()):  # digits sort before dataset.json, which completes the set
                os.replace(child, path / child.name)
            temporary.rmdir()
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
