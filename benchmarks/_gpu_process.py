"""A process that tells events as it goes, within its time. The standard library alone.

An event is a line of JSON after MARK, among what the process prints. It may allow a number of seconds, `limit`, within
which the next event must come.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "@@ "
Event = dict[str, Any]


def tell(**event: Any) -> None:
    """An event of this process."""
    print(MARK + json.dumps(event), flush=True)


def run(
    command: list[str],
    seconds: float,
    env: dict[str, str] | None = None,
    text: str = "",
    heard: Callable[[Event], None] = lambda event: None,
) -> dict[str, Any]:
    """What a command did: exit status (None: it was out of time), seconds, output. `text` is what it reads."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def read(stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                lines.put(line)

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    output: list[str] = []
    try:
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.close()
        in_time = _follow(process, lines, start + seconds, output, heard)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with its compilers and workers
    status = process.wait() if in_time else None
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "output": "".join(output)}


def _follow(
    process: subprocess.Popen[str],
    lines: queue.Queue[str],
    end: float,
    output: list[str],
    heard: Callable[[Event], None],
) -> bool:
    """Until the process ends, or its time or that of an event is over; whether it ended."""
    limit = math.inf
    while True:
        ended = process.poll() is not None
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            if ended:  # its compilers may hold the pipe for longer
                return True
            line = ""
        if line.startswith(MARK):
            with contextlib.suppress(ValueError):
                event = json.loads(line[len(MARK) :])
                if {"limit", "row"} & event.keys():
                    limit = time.monotonic() + event.get("limit", math.inf)
                heard(event)
        elif line:
            output.append(line.replace(str(ROOT), "."))
        if time.monotonic() > min(end, limit) and not ended:
            return False


def last_words(output: str) -> str:
    """The line of a log that tells most of what ended a process."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"\w*(Error|Exception|Timeout)\b|Fatal Python|Killed", line)]
    return (telling or lines or ["no output"])[-1][:200]
