"""bench: how fast each way to run a network is, as a ratio to eager PyTorch in float32 measured in the same run.

All rows of a network and batch are built first, then timed by turns, so that whatever else the machine does meets all
of them; on one thread of a CPU by the CPU's time. A ratio is the median over the rounds of reference time / row time.
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from edm_fast import timing
from edm_fast.errors import UserError
from edm_fast.evaluation import _machine, _memory, _networks, _peers, _report
from edm_fast.evaluation._rows import ROWS
from edm_fast.evaluation._targets import TARGETS, Results, default_batches
from edm_fast.files import atomic_write, check_output

MIN_TURN = 0.2  # seconds: shorter calls are repeated within a turn, after one to warm the caches
GPU_TURN = 0.05  # on a GPU, whose clocks are its own
Entry = dict[str, Any]
Say = Callable[[str], None]


def measure(
    target: str,
    name: str,
    batch: int,
    rows: Sequence[str],
    rounds: int,
    say: Say,
    memory: bool = False,
    device: str = "cpu",
) -> list[Entry]:
    """One entry per row, the reference first whether asked for or not; one without numbers has a "reason"."""
    names = ["reference", *(row for row in rows if row != "reference")]
    entries: dict[str, Entry] = {}
    calls: dict[str, Callable[[], Results]] = {}
    with _peers.subject(_networks.open_network(name, device), batch) as subject:
        truth: Results = []
        for row in names:
            say(f"{name}, batch {batch}: building {row}")
            entries[row], call, results = first_call(target, name, subject, row, truth)
            truth = truth or results
            if call is not None:
                calls[row] = call
        say(f"{name}, batch {batch}: {rounds} rounds of {', '.join(calls)}")
        add_times(entries, calls, batch, rounds, device, timing.process_clock if by_cpu_time(target, device) else None)
    if memory:
        _add_memory(target, entries)
    for entry in entries.values():
        entry["date"] = now()
        say(_report.line(entry))
    return list(entries.values())


def first_call(
    target: str, name: str, subject: _peers.Subject, row: str, truth: Results
) -> tuple[Entry, Callable[[], Results] | None, Results]:
    """Of a row: its entry, with a reason or an error relative to `truth` (nothing: its own results are that); the call
    to be timed; its results. What the reference raises is raised."""
    # on a GPU whatever goes wrong is a reason: others may have memory for what a row lacks
    reasons = (UserError,) if subject.device.type == "cpu" else (Exception,)
    entry: Entry = {"network": name, "batch": subject.batch, "row": row, **ROWS[row].described()}
    start = time.perf_counter()
    try:
        call = TARGETS[target].prepare(ROWS[row], subject)
        results = call()
    except reasons as error:
        if row == "reference":
            raise
        entry["reason"] = str(error) if isinstance(error, UserError) else failure(error)
        return entry, None, []
    entry["build_s"] = time.perf_counter() - start  # the first call is part of it: some pack or compile there
    entry.update(_errors(target, results, truth or results))
    return entry, call, results


def by_cpu_time(target: str, device: str) -> bool:
    """Whether the seconds are those of the CPU: of one thread, as a busy machine hardly moves them."""
    return device == "cpu" and torch.get_num_threads() == 1 and target != "processes"


def add_times(
    entries: dict[str, Entry],
    calls: dict[str, Callable[[], Results]],
    batch: int,
    rounds: int,
    device: str,
    clock: timing.Clock | None = None,
) -> None:
    """Time the calls by turns, "reference" among them."""
    turn, before = (MIN_TURN, asleep) if device == "cpu" else (GPU_TURN, None)
    found = timing.by_turns(calls, rounds, turn, clock or timing.clock_of(device), before=before)
    for row, times in found.items():
        entries[row].update(timing.compared(times, found["reference"]), images_per_s=batch / statistics.median(times))


def asleep() -> None:
    """Pools of threads wait busily for a few milliseconds after a call, at the cost of whose turn is next."""
    time.sleep(0.05)


def failure(error: BaseException) -> str:
    """One line on an error nobody expected."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:160]}"


def _errors(target: str, results: Results, truth: Results) -> Entry:
    """Of the first call, relative to the reference; of images also the mean difference in levels of 255."""
    found = {"error": _networks.relative_error(results, truth)}
    if target in ("sampling", "processes"):
        clipped = [images[0].clamp(-1, 1) for images in (results, truth)]
        found["levels"] = (clipped[0] - clipped[1]).abs().mean().item() * 127.5
    return found


def _add_memory(target: str, entries: dict[str, Entry]) -> None:
    for row, entry in entries.items():
        if not ROWS[row].samples:
            entry["memory_reason"] = "its file is exported in the same process, which takes more than running it"
        elif "reason" not in entry:
            try:
                entry["memory_bytes"] = _memory.peak_growth(target, entry["network"], entry["batch"], row)
            except UserError as error:
                entry["memory_reason"] = str(error)
    base = entries["reference"].get("memory_bytes")
    for entry in entries.values():
        if base and "memory_bytes" in entry:
            entry["memory_ratio"] = entry["memory_bytes"] / base


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def bench(
    target: str,
    outdir: Path,
    say: Say,
    networks: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
    rounds: int = 5,
    resume: bool = False,
    memory: bool = False,
    command: str = "",
    device: str = "cpu",
) -> Path:
    """Measure a target and write TARGET-MACHINE.json after each network and batch; returns its path.

    `resume` keeps the finished entries of an earlier run with the same settings and measures the rest, each against a
    reference of its own run.
    """
    networks = networks or TARGETS[target].networks
    wanted = list(TARGETS[target].rows) if rows is None else [row for row in ROWS if row in rows]
    for name in networks:
        _networks.check_name(name)
    settings = {**_machine.settings(torch.device(device)), "rounds": rounds}
    if by_cpu_time(target, device):
        settings["clock"] = "CPU time"
    path = outdir / f"{target}-{_machine.slug(settings)}.json"
    entries = _finished(path, settings) if resume else []
    replaced = [str(page) for page, kind in _report.pages(path).items() if check_output(page, kind)]
    if replaced and not resume:
        say(f"note: will be replaced: {', '.join(replaced)}")
    if entries:  # the commands that made them come first
        earlier = _report.read(path)["command"]
        command = command if command in earlier else f"{earlier}; {command}"
    for name in networks:
        for batch in batches or default_batches(target, name):
            present = [entry for entry in entries if (entry["network"], entry["batch"]) == (name, batch)]
            done = {e["row"] for e in present if not memory or {"memory_bytes", "memory_reason"} & e.keys()}
            missing = [row for row in wanted if row not in done]
            if not missing:
                say(f"{name}, batch {batch}: finished before")
                continue
            fresh = measure(target, name, batch, missing, rounds, say, memory, device)
            fresh = [entry for entry in fresh if entry["row"] not in done]  # an earlier reference stays
            renewed = {entry["row"] for entry in fresh}
            entries = [e for e in entries if e not in present or e["row"] not in renewed] + fresh
            entries.sort(key=_order(target, networks))
            document = {"target": target, "settings": settings, "command": command, "date": now(), "rows": entries}
            with atomic_write(path, "w", kind="json") as file:
                file.write(json.dumps(document, indent=1) + "\n")
    return path


def _order(target: str, networks: Sequence[str]) -> Callable[[Entry], Any]:
    def key(entry: Entry) -> Any:
        place = list(networks).index(entry["network"]) if entry["network"] in networks else len(networks)
        return place, entry["network"], entry["batch"], list(ROWS).index(entry["row"])

    return key


def _finished(path: Path, settings: Entry) -> list[Entry]:
    """The entries of an earlier run that have numbers; UserError if it had other settings."""
    if not path.exists():
        return []
    document = _report.read(path)
    for key, value in settings.items():
        was = document["settings"].get(key)
        if was != value:
            raise UserError(f"{path} has {key} {was!r}, now it is {value!r}; expected another --outdir or no --resume")
    return [entry for entry in document["rows"] if "ratio" in entry]
