"""Files that are written whole or not at all, and files fetched from the web into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from edm_fast.errors import UserError, UserOSError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it onto `path` on success, remove it on failure.

    Missing parent folders are made. The data reaches the disk before the rename, so that a crash leaves the old
    file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def umask() -> int:
    """Permissions that new files do not get; they can only be read by setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder() -> Path:
    """EDM_FAST_CACHE_DIR, or edm-fast in the platform's cache folder."""
    if os.environ.get("EDM_FAST_CACHE_DIR"):
        return Path(os.environ["EDM_FAST_CACHE_DIR"]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edm-fast"


def is_url(path_or_url: str | os.PathLike[str]) -> bool:
    return str(path_or_url).lower().startswith(("http://", "https://"))


def fetch(
    path_or_url: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> Path:
    """A local path for `path_or_url`. An http(s) address is downloaded once and kept in the cache folder.

    A download gets its name in the cache only when it is complete and, with `sha256`, has that digest (64 hex
    digits); local and cached files are checked against it too.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"sha256 is {sha256!r}; expected 64 hexadecimal digits")
    if not is_url(path_or_url):
        path = Path(path_or_url)
        if not path.exists():
            raise UserOSError(f"{path}: no such file or folder")
        if sha256 is not None:
            _check_digest(path, str(path), sha256)
        return path
    url = str(path_or_url)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])[-100:] or "file"
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not path.is_file():
        _download(url, path, sha256)
    elif sha256 is not None:
        _check_digest(path, f"{url} (kept as {path})", sha256)
    return path


def _download(url: str, path: Path, sha256: str | None) -> None:
    digest = hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "edm-fast"})
        with urllib.request.urlopen(request, timeout=60) as response, atomic_write(path) as file:
            expected = response.headers.get("Content-Length")
            received = 0
            with tqdm(total=int(expected) if expected else None, unit="B", unit_scale=True, disable=None) as bar:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
            if expected is not None and received != int(expected):
                raise UserOSError(f"{url}: the download stopped after {received} of {expected} bytes")
            if sha256 is not None and digest.hexdigest() != sha256.lower():
                raise UserError(f"{url}: sha256 is {digest.hexdigest()}; expected {sha256.lower()}")
    except UserError:
        raise
    except urllib.error.HTTPError as error:
        raise UserOSError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise UserOSError(f"{url}: cannot be downloaded ({reason})") from None


def _check_digest(path: Path, name: str, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"{name}: a checksum needs a file, this is a folder")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256.lower():
        raise UserError(f"{name}: sha256 is {digest.hexdigest()}; expected {sha256.lower()}")
