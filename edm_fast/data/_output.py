"""Writing a dataset to a folder or a stored zip: complete, or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edm_fast.errors import UserError, UserOSError
from edm_fast.files import atomic_write, umask

Write = Callable[[str, bytes], None]


def member_name(index: int) -> str:
    """`00000/img00000042.png` for image 42: the first five of the eight digits name the folder."""
    digits = f"{index:08d}"
    return f"{digits[:5]}/img{digits}.png"


def encode_labels(labels: list[tuple[str, Any]], classes: dict[str, int]) -> bytes:
    """The text of dataset.json; the labels are null as soon as one image lacks its own. `classes` names them."""
    complete = all(label is not None for _, label in labels)
    table: dict[str, Any] = {"labels": [list(pair) for pair in labels] if complete else None}
    return json.dumps({**table, "classes": classes} if classes and complete else table).encode()


def check_dest(dest: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Path:
    """The destination as a path. A folder has to be empty or absent; a zip may exist and is then replaced.

    Nothing may be written onto or into `source`.
    """
    if not os.fspath(dest):
        raise UserError("the destination is empty text; expected a folder or a .zip file")
    path = Path(dest)
    if source is not None and Path(source).exists():
        real = Path(source).resolve()
        if real in (path.resolve(), *path.resolve().parents) or (path.exists() and os.path.samefile(path, source)):
            raise UserOSError(f"destination {path} is the source {source} or lies in it; expected another place")
    if path.suffix.lower() == ".zip":
        if path.exists() and not (path.is_file() and zipfile.is_zipfile(path)):
            raise UserOSError(f"destination {path} exists and is no zip file; expected a zip, or a new name")
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
    target = Path(os.path.realpath(path))  # a link keeps leading there
    with _open_zip(target) if path.suffix.lower() == ".zip" else _open_folder(target) as write:
        yield write


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[Write]:
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
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
