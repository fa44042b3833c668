"""Seconds by key in a file of the cache folder: what was measured once need not be measured again.

One choice for all processes: what another process has stored meanwhile counts in place of own measurements.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edm_fast.files import atomic_write, cache_folder

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows
    import fcntl  # type: ignore[no-redef]


class Table:
    """Seconds by shape and algorithm, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    def costs(self, keys: Sequence[str], measure: Callable[[list[str]], dict[str, float]]) -> dict[str, float]:
        """The seconds of every key; measure(keys) is asked for those that nobody knows."""
        with self.lock:
            if any(key not in self.seconds for key in keys):
                self.seconds = {**self.stored(), **self.seconds}
            missing = [key for key in keys if key not in self.seconds]
            if missing:
                self.keep(measure(missing))
            return {key: self.seconds[key] for key in keys}

    def stored(self) -> dict[str, float]:
        """What the file holds; nothing if there is none, or none that makes sense."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            found = {str(key): float(value) for key, value in json.loads(self.path.read_text()).items()}
            if all(0 <= seconds < math.inf for seconds in found.values()):
                return found
        return {}

    def keep(self, measured: dict[str, float]) -> None:
        """Put measurements into the table and its file. What another process has stored meanwhile counts in their
        place: processes that measure at the same time would choose differently, and their images differ in rounding."""
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time, and choices may change
            with _alone(self.path):
                stored = self.stored()
                measured = {**measured, **stored}
                with atomic_write(self.path, "w") as file:
                    json.dump({**self.seconds, **measured}, file, indent=0, sort_keys=True)
        self.seconds = {**measured, **self.seconds}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in such a block for the same file, where the system has locks that end with their owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network folders have none
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def table(folder: Path | None, name: str) -> Table:
    """The table NAME.json of a folder, or of the cache folder."""
    return _table((folder or cache_folder()) / "plans" / f"{name}.json")


@functools.cache
def _table(path: Path) -> Table:
    return Table(path)


def file_name(text: str) -> str:
    """Text with what a file system may not like replaced."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)
