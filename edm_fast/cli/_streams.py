"""Standard streams that take whatever a verb prints, closed or not, in any encoding."""

from __future__ import annotations

import contextlib
import os
import sys

NAMES = ("stdin", "stdout", "stderr")


def prepare() -> None:
    """Put the null device in place of closed streams, and escape characters that a stream cannot encode.

    The next file that is opened would get the number of a closed stream, and with it whatever a library prints there.
    """
    for number, name in enumerate(NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence_broken() -> None:
    """Point streams that cannot be written to at the null device: Python's flush at exit would complain once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
