"""Looking at what a verb is to write before it computes anything."""

from __future__ import annotations

import click

from edm_fast.errors import UserOSError
from edm_fast.files import check_output, same_file


def expect_output(path: str, kind: str, *sources: str) -> None:
    """UserOSError if `path` cannot be written, holds a file of another kind, or is one of the sources.

    A file of the same kind is going to be replaced: a line says so.
    """
    if any(same_file(source, path) for source in sources):
        raise UserOSError(f"{path}: source and destination are the same; expected another destination")
    if check_output(path, kind):
        click.echo(f"note: {path} exists and will be replaced")
