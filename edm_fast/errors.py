"""Errors a user can cause. The command line prints their text as one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what was wrong and what was expected, in one line."""


class UserOSError(UserError, OSError):
    """As UserError, for files and folders (an OSError too, as the published classes raise)."""


def near(name: object, known: Iterable[str]) -> str:
    """ " (near names: a, b)" for a name that is not among the known ones, or nothing."""
    lower = {word.lower(): word for word in known}
    found = [lower[word] for word in difflib.get_close_matches(str(name).lower(), lower, cutoff=0.7)]
    return f" (near names: {', '.join(found)})" if found else ""
