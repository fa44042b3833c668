"""What a user is told when something goes wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import click

from edm_fast.errors import UserError


def error_line(error: BaseException) -> str | None:
    """The one line that tells a user what went wrong, or None where a traceback serves better."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and not isinstance(error, UserError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    elif isinstance(error, (UserError, OSError)):
        text = str(error)
    elif isinstance(error, MemoryError) or _is_out_of_memory(error):
        text = f"out of memory: {error}" if str(error) else "out of memory"
    else:
        return None
    return " ".join(text.split()) or type(error).__name__


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of this package are one line for a user; those of other packages stay as they are."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if category.__module__.split(".")[0] == "edm_fast":
                click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _is_out_of_memory(error: BaseException) -> bool:
    # torch is not imported for this: the device allocator has a class of its own, the host allocator a phrase
    host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return host or type(error).__name__ == "OutOfMemoryError"
