"""Errors a user can cause. The command line prints their text as one line and exits with code 2."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class UserError(ValueError):
    """Bad input: the message says what was wrong and what was expected, in one line."""


class UserOSError(UserError, OSError):
    """As UserError, for files and folders (an OSError too, as the published classes raise)."""
