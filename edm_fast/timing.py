"""Timing: calls by turns, so that whatever else the machine does meets all of them; medians, quartiles, spread.

A clock is a function clock(call, repeats) that runs the call so often and returns the seconds of one. Tests have clocks
of their own. Imports torch only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Call = Callable[[], Any]
Clock = Callable[[Call, int], float]
Key = TypeVar("Key")

MAX_REPEATS = 200
WIDE = 0.1  # a spread beyond which too few of the times agree


def wall_clock(call: Call, repeats: int = 1) -> float:
    return _timed(call, repeats, time.perf_counter)


def thread_clock(call: Call, repeats: int = 1) -> float:
    """CPU time of this thread, which a busy machine hardly moves; of work on one thread only."""
    return _timed(call, repeats, time.thread_time)


def process_clock(call: Call, repeats: int = 1) -> float:
    """CPU time of all threads of this process: of work on one of them, whichever it is."""
    return _timed(call, repeats, time.process_time)


def gpu_clock(call: Call, repeats: int = 1) -> float:
    """Between two events of the current stream: gaps in which the GPU waits for Python count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()  # the event, not the device: another thread may be capturing, which such a wait would break
    return start.elapsed_time(end) / 1e3 / repeats


def clock_of(device: torch.device | str) -> Clock:
    return gpu_clock if torch.device(device).type == "cuda" else wall_clock


def _timed(call: Call, repeats: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def by_turns(
    calls: Mapping[Key, Call],
    rounds: int,
    turn: float = 0.0,
    clock: Clock | None = None,
    *,
    before: Call | None = None,
    most: int = 0,
    limit: float = math.inf,
) -> dict[Key, list[float]]:
    """Seconds of each call in each round; every second round goes backwards.

    Calls shorter than `turn` seconds are repeated within a turn, after one to warm the caches. `before` runs, untimed,
    ahead of each turn. While the spread of any call is wide there are more rounds, up to `most` in all, begun within
    `limit` seconds of the last of those.
    """
    clock = clock or wall_clock
    repeats = {key: _repeats(call, turn, clock) for key, call in calls.items()}
    times: dict[Key, list[float]] = {key: [] for key in calls}
    done, end = 0, math.inf
    while done < rounds or (
        done < most and time.monotonic() < end and any(spread(found) > WIDE for found in times.values())
    ):
        for key in list(calls)[:: -1 if done % 2 else 1]:
            if before is not None:
                before()
            if repeats[key] > 1:
                calls[key]()
            times[key].append(clock(calls[key], repeats[key]))
        done += 1
        if done == rounds:
            end = time.monotonic() + limit
    return times


def _repeats(call: Call, turn: float, clock: Clock) -> int:
    """How often a call runs within a turn; it is tried once, unless every turn is a single call."""
    return min(max(1, math.ceil(turn / max(clock(call, 1), 1e-9))), MAX_REPEATS) if turn else 1


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper one."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def spread(times: Sequence[float]) -> float:
    """How far the median lies above the least, as a part of it: other work on the machine only adds to a time, so that
    the least is right where many agree with it."""
    least = min(times)
    return (statistics.median(times) - least) / least if least > 0 else 0.0


def compared(times: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the times, and of the ratios reference / time round by round."""
    ratios = [r / t for r, t in zip(reference, times, strict=True)]
    return {
        "median_s": statistics.median(times),
        "quartiles_s": quartiles(times),
        "times_s": list(times),
        "reference_median_s": statistics.median(reference),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
    }
