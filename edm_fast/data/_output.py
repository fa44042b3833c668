"""Writing a dataset to a folder or a stored zip: complete, or not there at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edm_fast.errors import UserOSError
from edm_fast.files import PathLike, atomic_write, check_output, link_target, same_file, umask, user_path

Write = Callable[[str, bytes], None]
ARCHIVES = {".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}  # no names for folders; only .zip is written


def member_name(index: int) -> str:
    """`00000/img00000042.png` for image 42: the first five of the eight digits name the folder."""
    digits = f"{index:08d}"
    return f"{digits[:5]}/img{digits}.png"


def encode_labels(labels: list[tuple[str, Any]], classes: dict[str, int]) -> bytes:
    """The text of dataset.json; the labels are null as soon as one image lacks its own. `classes` names them."""
    complete = all(label is not None for _, label in labels)
    table: dict[str, Any] = {"labels": [list(pair) for pair in labels] if complete else None}
    return json.dumps({**table, "classes": classes} if classes and complete else table).encode()


def check_dest(dest: PathLike, source: PathLike | None = None) -> bool:
    """Whether a zip is going to be replaced. A folder has to be empty or absent, and `source` is left alone."""
    path = Path(user_path(dest))
    if source is not None:
        if same_file(source, dest) or Path(user_path(source)).resolve() in path.resolve().parents:
            raise UserOSError(f"destination {dest} is the source {source} or lies in it; expected another place")
    if Path(dest).suffix.lower() == ".zip":
        return check_output(dest, "zip")
    if path.is_dir() and any(path.iterdir()):
        raise UserOSError(f"destination folder {path} is not empty; expected an empty or absent folder")
    if not path.is_dir() and (path.exists() or path.suffix.lower() in ARCHIVES):
        what = "is a file" if path.exists() else f"would be a folder that is named {path.suffix}"
        raise UserOSError(f"destination {path} {what}; expected a folder or a name that ends in .zip")
    return False


@contextlib.contextmanager
def output_at(dest: PathLike) -> Iterator[Write]:
    """Yield write(name, data). What was written appears under `dest` only when the block ends without an error."""
    check_dest(dest)
    target = link_target(dest)
    with open_zip(target) if Path(dest).suffix.lower() == ".zip" else _open_folder(target) as write:
        yield write


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[Write]:
    """write(name, data) adds a member to a zip, which is there when the block ends without an error."""
    with atomic_write(path, kind="zip") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name)  # its fixed date of 1980 makes equal inputs give equal bytes
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        yield write


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[Write]:
    """As open_zip, for a tar archive."""
    with (
        atomic_write(path, kind="tar") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):

        def write(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)  # of 1970 and nobody: equal inputs give equal bytes
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        yield write


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
