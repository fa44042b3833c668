"""Paths a user gives, files that are written whole or not at all, and files fetched from the web into a cache."""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import http.client
import itertools
import os
import re
import stat
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from edm_fast.errors import UserError, UserOSError

PathLike = str | os.PathLike[str]
# what a file may hold, told by its first bytes, and the words for it
KINDS = {
    "gif": "a GIF picture",
    "json": "a JSON file",
    "npz": "an .npz file",
    "pickle": "a pickle",
    "png": "a PNG picture",
    "safetensors": "a safetensors file",
    "tar": "a tar archive",
    "text": "a text file",
    "torch": "a file of torch.save",
    "zip": "a zip archive",
    "other": "a file of another kind",
}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
HEAD = 4096  # bytes that tell what a file holds


def user_path(path: PathLike, url: bool = False) -> str:
    """A path as a user gives it, with ~ and ~USER expanded; an http(s) address stays as it is where `url` allows one.

    UserOSError for empty text (as of a variable that is not set), other addresses, and a home folder nobody knows.
    Applying it twice changes nothing.
    """
    text = os.fsdecode(path)
    wanted = "a path or an http(s) address" if url else "a path"
    if not text.strip():
        raise UserOSError(f"empty text; expected {wanted} (is a variable not set?)")
    if "\0" in text:
        raise UserOSError(f"{ascii(text)} holds a NUL character, so it is not a path; expected {wanted}")
    if url and is_url(text):
        return text
    if ADDRESS.match(text):
        raise UserOSError(f"{text} is an address; expected {wanted}")
    first = text.split(os.sep)[0]
    # with an empty HOME, Python takes the root for the home folder
    expanded = text if first == "~" and os.environ.get("HOME") == "" else os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.lexists(first):
        raise UserOSError(f"{text}: no home folder is known for {first}; expected {wanted}")
    # Path("./~") is "~" again, which the next reader would take for the home folder
    return os.path.abspath(expanded) if str(Path(expanded)).startswith("~") else expanded


def same_file(a: PathLike, b: PathLike) -> bool:
    """Whether two paths lead to one file or folder, under one name or two (symbolic and hard links)."""
    if is_url(a) or is_url(b):
        return False
    a, b = user_path(a), user_path(b)
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def link_target(path: PathLike) -> Path:
    """Where a file of this name is written: behind a symbolic link or a chain of them, whether it exists or not."""
    path = Path(user_path(path))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def utf8_name(path: PathLike) -> Iterator[str]:
    """A name of an existing file for libraries that take UTF-8 alone: its own, or that of a descriptor of it."""
    name = os.fspath(path)
    if name == name.encode(errors="ignore").decode():
        yield name
        return
    with open(name, "rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def kind_of(path: PathLike) -> str | None:
    """What a file holds, by content: a key of KINDS, or None if it is empty."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]  # the name of the first member
        if first.endswith(b".npy"):
            return "npz"
        return "torch" if re.fullmatch(rb"[^/]+/data(\.pkl|/\d+)", first) else "zip"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[257:262] == b"ustar":
        return "tar"
    if head[4:9] == b"\0\0\0\0{":  # a header of less than 4 GiB, and its first character
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "pickle"
    if not head:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return "other"
    if "\0" in text:
        return "other"
    return "json" if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") else "text"


def check_output(path: PathLike, kind: str | None = None) -> bool:
    """Whether writing `path` will replace a file; asked before long work, so that its result can be written.

    UserOSError for a folder, device, pipe or socket, for a file that is read-only or, with `kind` (a key of KINDS),
    holds something else, and where no file can be made.
    """
    return _look(path, kind)[1] is not None


def _look(path: PathLike, kind: str | None) -> tuple[Path, int | None]:
    """(where to write, permissions of the file that is there); UserOSError as in check_output."""
    name = os.fsdecode(path)
    with _naming(name):
        target = link_target(path)
        try:
            mode = os.stat(user_path(name)).st_mode  # /dev/stdout may lead to a pipe, which has no name of its own
        except FileNotFoundError:
            _check_folder(next(folder for folder in target.parents if folder.exists()))
            return target, None
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise UserOSError(f"{name} is {what}; expected the name of a file")
        if not mode & 0o222 or not os.access(target, os.W_OK):
            raise UserOSError(f"{name} is read-only; expected a new name, or a file that may be replaced")
        _check_folder(target.parent)
        found = kind if kind is None else kind_of(target)
    if found is not None and found != kind:
        raise UserOSError(f"{name} exists and is {KINDS[found]}; expected a new name, or {KINDS[str(kind)]} to replace")
    return target, stat.S_IMODE(mode)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserOSError(f"{folder} is a file; expected a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserOSError(f"the folder {folder} cannot be written to; expected one that can")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors of the operating system name the file that is to be written, not the one that stands in for it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserOSError(f"cannot write {name}: {error.strerror or error}") from None


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "wb", kind: str | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it onto `path` on success, remove it on failure.

    Missing parent folders are made; a symbolic link stays, and the file it leads to is written. What must not be
    replaced is refused as by check_output; a file that is replaced hands on its permissions. The data reaches the disk
    before the rename, so that a crash leaves the old file or the new one. Text is UTF-8.
    """
    target, permissions = _look(path, kind)
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    # a name of full length leaves no room for more
    start = os.fsencode(target.name)[:200].decode(sys.getfilesystemencoding(), "ignore")
    with _naming(os.fsdecode(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{start}.", suffix=".tmp")
    try:
        with os.fdopen(fd, mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask() if permissions is None else permissions)
        os.replace(temporary, target)
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
    """EDM_FAST_CACHE_DIR, or edm-fast in the platform's cache folder; a temporary folder for a user without a home."""
    own = os.environ.get("EDM_FAST_CACHE_DIR", "").strip()
    if own:
        return Path(user_path(own))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(user_path(base)) / "edm-fast"
    except UserOSError:
        return _temporary_cache()


@functools.cache
def _temporary_cache() -> Path:
    """A cache below the temporary folder that nobody else can write to: a detector found in it would be run."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows keeps a temporary folder for each user
    folder = Path(tempfile.gettempdir()) / f"edm-fast-{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="edm-fast-"))


def is_url(path_or_url: PathLike) -> bool:
    return str(path_or_url).lower().startswith(("http://", "https://"))


def fetch(path_or_url: PathLike, cache_dir: PathLike | None = None, sha256: str | None = None) -> Path:
    """A local path for `path_or_url`. An http(s) address is downloaded once and kept in the cache folder.

    A download gets its name in the cache only when it is complete, no web page and, with `sha256`, has that digest (64
    hex digits); local and cached files are checked against it too. Where the cache cannot be written, a temporary
    folder takes its place, with a line that says so.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"sha256 is {sha256!r}; expected 64 hexadecimal digits")
    url = user_path(path_or_url, url=True)
    if not is_url(url):
        path = Path(url)
        if not path.exists():
            raise UserOSError(f"{path}: no such file or folder")
        if sha256 is not None:
            _check_digest(path, str(path), sha256)
        return path
    name = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])[-100:] or "file"
    name = f"{hashlib.sha256(url.encode(errors='surrogateescape')).hexdigest()[:16]}-{name}"
    path = (Path(user_path(cache_dir)) if cache_dir is not None else cache_folder()) / name
    if not _usable(path):
        if cache_dir is None:
            path = _writable(path.parent) / name
        if not _usable(path):
            _download(url, path, sha256)
            return path
    if sha256 is not None:
        _check_digest(path, f"{url}{kept_as(url, path)}", sha256)
    return path


def kept_as(path_or_url: PathLike, local: PathLike) -> str:
    """For errors about a file that fetch gave: where a download is kept and how to get a new one."""
    return f" (kept as {local}; delete it to download again)" if is_url(path_or_url) else ""


def _usable(path: Path) -> bool:
    """Whether there is a cached file that may be what its address promised."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return mistaken(file.read(HEAD)) is None
    return False


@functools.cache
def _writable(folder: Path) -> Path:
    """The cache folder, or a temporary one if it cannot be written, which is said once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError as error:
        instead = _temporary_cache()
        line = f"note: the cache folder {folder} cannot be written ({error.strerror or error}); using {instead}"
        print(line, file=sys.stderr)
        return instead


def mistaken(head: bytes, content_type: str = "") -> str | None:
    """What servers send in place of a file, from its first bytes: a phrase that names it, or None."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:100].lower()
    page = start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))
    if page or ("html" in content_type.lower() and b"\0" not in head and head[:1] != b"\x80"):
        return "a web page, not a file (was the link right, and does it need no login?)"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run `git lfs pull`)"
    return None if head else "an empty file"


def _download(url: str, path: Path, sha256: str | None) -> None:
    digest = hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "edm-fast"})
        with urllib.request.urlopen(request, timeout=60) as response, atomic_write(path) as file:
            chunks = _decoded(_received(response, url), response.headers.get("Content-Encoding") or "identity", url)
            first = next(chunks, b"")
            found = mistaken(first[:HEAD], response.headers.get("Content-Type") or "")
            if found is not None:
                raise UserOSError(f"{url}: the server sent {found}")
            for chunk in itertools.chain([first], chunks):
                file.write(chunk)
                digest.update(chunk)
            if sha256 is not None and digest.hexdigest() != sha256.lower():
                raise UserError(f"{url}: sha256 is {digest.hexdigest()}; expected {sha256.lower()}")
    except UserError:
        raise
    except urllib.error.HTTPError as error:
        raise UserOSError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise UserOSError(f"{url}: cannot be downloaded ({reason})") from None


def _received(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    """The bytes as they come, with a progress bar; UserOSError if fewer come than announced."""
    expected = response.headers.get("Content-Length")
    received = 0
    with tqdm(total=int(expected) if expected else None, unit="B", unit_scale=True, disable=None) as bar:
        while chunk := response.read(1 << 20):
            yield chunk
            received += len(chunk)
            bar.update(len(chunk))
    if expected is not None and received != int(expected):
        raise UserOSError(f"{url}: the download stopped after {received} of {expected} bytes")


def _decoded(chunks: Iterator[bytes], encoding: str, url: str) -> Iterator[bytes]:
    """The bytes without the compression that a server has added for the way."""
    if encoding.lower() == "identity":
        yield from chunks
        return
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise UserOSError(f"{url}: the server sent the encoding {encoding!r}; expected none, or gzip")
    unzip = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            if piece := unzip.decompress(chunk):
                yield piece
    except zlib.error as error:
        raise UserOSError(f"{url}: cannot be unpacked ({error})") from None
    if not unzip.eof:
        raise UserOSError(f"{url}: the download stopped before its end")


def _check_digest(path: Path, name: str, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"{name}: a checksum needs a file, this is a folder")
    if (found := sha256_of(path)) != sha256.lower():
        raise UserError(f"{name}: sha256 is {found}; expected {sha256.lower()}")


def sha256_of(path: PathLike) -> str:
    """The digest of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
