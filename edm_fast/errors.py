"""Errors a user can cause, and words for their texts. The command line prints one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what was wrong and what was expected, in one line."""


# whatever a broken installation of an optional package raises when it is imported or used; a few end the program
BROKEN = (Exception, SystemExit)


class UserOSError(UserError, OSError):
    """As UserError, for files and folders (an OSError too, as the published classes raise)."""


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks, or its kind if it has none; of the system's errors what went wrong."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def count(number: int, noun: str) -> str:
    """ "1 image", "2 images", "3 classes" """
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, as text."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def near(name: object, known: Iterable[str]) -> str:
    """ " (near names: a, b)" for a name that is not among the known ones, or nothing."""
    lower = {word.lower(): word for word in known}
    found = [lower[word] for word in difflib.get_close_matches(str(name).lower(), lower, cutoff=0.7)]
    return f" (near names: {', '.join(found)})" if found else ""
