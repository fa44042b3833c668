"""What was measured, by key, in files of the cache folder: one per machine and version of the kernels.

Plans are to be the same in every process and run, so:
- a process goes by the first row it meets of a key, to its end;
- of processes that measure at the same time, the first to store decides for all;
- a row whose times disagreed, or that was dropped, is measured again by a process that meets it an hour later or more,
  `MAX_COUNT` times at the most, never in a group of processes; the better measurement stays.

So processes side by side agree if they start within an hour of the measurement or after the table is settled, and runs
agree to the bit once it is: `edm-fast tune-kernels` settles it at once. On a GPU that holds where cuDNN times no
algorithms (torch.backends.cudnn.deterministic).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edm_fast import distributed, timing
from edm_fast.files import atomic_write, cache_folder

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows
    import fcntl  # type: ignore[no-redef]

SHIPPED = Path(__file__).parents[1] / "assets/plans"  # tables measured on some machines, by their names
MAX_COUNT = 3  # measurements of a row
HOPELESS = 1.5  # times the fastest: a candidate so slow is of no interest


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is known of a candidate: its seconds and how far they disagreed, or why it is dropped."""

    seconds: float = 0.0
    spread: float = 0.0
    fault: str = ""
    date: str = dataclasses.field(default_factory=now)  # of the last measurement
    count: int = 1  # measurements so far

    def __post_init__(self) -> None:
        """ValueError or TypeError if this makes no sense."""
        if not all(0 <= number < math.inf for number in (self.seconds, self.spread, self.count - 1)):
            raise ValueError(self)
        if not isinstance(self.fault, str) or not math.isfinite(self.age()):
            raise ValueError(self)

    def age(self) -> float:
        """Seconds since the last measurement."""
        found = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(self.date)
        return found.total_seconds()

    def wide(self) -> bool:
        """Whether the times disagreed."""
        return self.spread > timing.WIDE

    def settled(self) -> bool:
        return self.count >= MAX_COUNT or not (self.fault or self.wide())

    def again(self, later: Measurement) -> Measurement:
        """After another measurement: the better one, or the later one where either is a fault."""
        best = later if self.fault or later.fault else min(self, later, key=lambda row: (row.spread, row.seconds))
        return dataclasses.replace(best, date=later.date, count=self.count + later.count)


FIELDS = [field.name for field in dataclasses.fields(Measurement)]


class Table:
    """Rows by key, in a file."""

    retry_after = 3600.0  # seconds until an unsettled row is measured again

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.rows: dict[str, Measurement] = {}  # those this process goes by

    def seconds(self, keys: Sequence[str], measure: Callable[[list[str]], dict[str, Measurement]]) -> dict[str, float]:
        """The seconds of every key that is not dropped; measure(keys) is asked for rows that are missing, or not
        settled and among the fastest."""
        with self.lock:
            fresh = [key for key in keys if key not in self.rows]
            if fresh:
                stored = self.stored()
                known = {key: stored[key] for key in fresh if key in stored}
                missing = [key for key in fresh if key not in known or self._retries(known[key], known)]
                self.rows |= {**known, **(self.keep(measure(missing), stored) if missing else {})}
            return {key: self.rows[key].seconds for key in keys if not self.rows[key].fault}

    def _retries(self, row: Measurement, known: Mapping[str, Measurement]) -> bool:
        if row.settled() or row.age() < self.retry_after or distributed.world_size() > 1:
            return False
        return bool(row.fault) or row.seconds <= HOPELESS * min(r.seconds for r in known.values() if not r.fault)

    def stored(self) -> dict[str, Measurement]:
        """What the file holds, and for other keys what came with the package."""
        return _rows(SHIPPED / self.path.name) | _rows(self.path)

    def keep(self, measured: Mapping[str, Measurement], before: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """Put measurements into the file, and return the rows that count: where another process has stored one since
        `before` was read it is that, or processes that measure at the same time would choose differently."""

        def merged(stored: Mapping[str, Measurement]) -> dict[str, Measurement]:
            found = {key: before[key].again(row) if key in before else row for key, row in measured.items()}
            return {
                key: stored[key] if key in stored and stored[key] != before.get(key) else row
                for key, row in found.items()
            }

        with contextlib.suppress(OSError):  # a folder that cannot be written costs time, and choices may change
            with _alone(self.path):
                stored = self.stored()
                found = merged(stored)
                rows = {**self.rows, **stored, **found}
                with atomic_write(self.path, "w") as file:
                    json.dump(
                        {key: dataclasses.asdict(row) for key, row in rows.items()}, file, indent=0, sort_keys=True
                    )
            return found
        return merged(before)


def _rows(path: Path) -> dict[str, Measurement]:
    """Of a file; nothing if there is none, or none that makes sense."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return {
            str(key): Measurement(**{name: row[name] for name in FIELDS})
            for key, row in json.loads(path.read_text()).items()
        }
    return {}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in such a block for the same file, where the system has locks that end with their owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network folders have none
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


_tables: dict[Path, Table] = {}  # those this process goes by


def table(folder: Path | None, name: str) -> Table:
    """The table NAME.json of a folder, or of the cache folder."""
    path = (folder or cache_folder()) / "plans" / f"{name}.json"
    return _tables.setdefault(path, Table(path))


def tables() -> list[Table]:
    """Every table of the cache folder, with what its file holds."""
    found = [Table(path) for path in sorted((cache_folder() / "plans").glob("*.json"))]
    for table in found:
        table.rows = table.stored()
    return found


def summary(table: Table) -> str:
    """Entries, dates and what is wrong with some, in a line."""
    rows = [*table.rows.values()]
    if not rows:
        return "empty, or not readable: it will be measured anew"
    dates = sorted(row.date[:10] for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    wide = sum(row.wide() for row in rows)
    parts = [f"{len(rows)} entries", f"measured {when}", f"{wide} with a wide spread"]
    return ", ".join([*parts, f"{sum(bool(row.fault) for row in rows)} dropped"])


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside the block rows that are not settled are measured again at once, whatever this process went by before."""
    patience = Table.retry_after
    _tables.clear()
    Table.retry_after = 0.0
    try:
        yield
    finally:
        Table.retry_after = patience


def dropped(op: str) -> dict[str, str]:
    """The candidates of an op that this process has dropped, with the reasons."""
    rows = [item for table in _tables.values() for item in list(table.rows.items())]
    kinds = {op, "pair"} if op == "conv2d" else {op}
    found = {key: row.fault for key, row in rows if row.fault and kinds & {*key.split()}}
    return {key.split()[0]: f"dropped while tuning: {fault}" for key, fault in found.items()}


def file_name(text: str) -> str:
    """Text with what a file system may not like replaced."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)
