"""Files that a verb writes: looked at before it computes anything, and named when they cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from edm_fast.errors import UserError, UserOSError
from edm_fast.files import check_output, same_file


def expect_output(path: str, kind: str, *sources: str) -> None:
    """UserOSError if `path` cannot be written, holds a file of another kind, or is one of the sources.

    A file of the same kind is going to be replaced: a line says so.
    """
    if any(same_file(source, path) for source in sources):
        raise UserOSError(f"{path}: source and destination are the same; expected another destination")
    if check_output(path, kind):
        click.echo(f"note: {path} exists and will be replaced")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system say which file they are about (a full disk does not)."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserOSError(f"cannot write {path}: {error.strerror or error}") from error
