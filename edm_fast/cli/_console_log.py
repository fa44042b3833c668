"""A run's log.txt: a copy of the console, and the sign that a process is at work in the folder."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from edm_fast.errors import UserError, UserOSError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Tee:
    """Standard output that is also appended to a file, as long as that can be written."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream = stream
        self._file: TextIO | None = file

    def write(self, text: str) -> int:
        self._copy(lambda file: file.write(text))
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()
        self._copy(lambda file: file.flush())

    def _copy(self, action: Callable[[TextIO], object]) -> None:
        if self._file is not None:
            try:
                action(self._file)
            except OSError as error:
                self._file = None
                self._stream.write(f"The console is no longer copied to log.txt: {error.strerror or error}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def console_log(run_dir: Path) -> Iterator[None]:
    """Make the run folder and copy the console to its log.txt, and the reason if the run ends with an error.

    The log is locked: two processes in one folder would overwrite each other's files.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / "log.txt", "a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserOSError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    with file, contextlib.redirect_stdout(Tee(sys.stdout, file)):  # type: ignore[type-var]
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # otherwise the file system knows no locks
                raise UserError(f"another process is training in {run_dir}; expected a folder of its own") from error
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):
                file.write(f"{type(error).__name__}: {error}\n")
            raise
