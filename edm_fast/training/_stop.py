"""Stopping between two steps: a signal asks for it, all ranks agree on the step, and a state is written there.

SIGTERM and SIGUSR1 are how clusters announce the end of a job, SIGHUP comes when a terminal is closed, and SIGINT is
Ctrl-C. A wish is an integer, and the largest of all ranks counts: 0 for none, DUMP for a state, above it DUMP + the
number of the signal for a state and the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
NOTHING = 0
DUMP = 1
INTERRUPT = DUMP + int(signal.SIGINT)
AGAIN_SEC = 1.0  # a Ctrl-C reaches each process of torchrun twice: from the terminal, and from torchrun


class Stopped(SystemExit):
    """A signal ended the run between two steps, on all ranks; its state is written. Exit status 0."""


class Interrupted(KeyboardInterrupt):
    """As Stopped, for Ctrl-C."""


def ending(wish: int) -> BaseException:
    """What ends the run."""
    return Interrupted() if wish == INTERRUPT else Stopped(0)


def signal_name(wish: int) -> str:
    return "Ctrl-C" if wish == INTERRUPT else signal.Signals(wish - DUMP).name


class Signals:
    """`with Signals() as signals`: signals.wish follows the signals received, which end nothing by themselves.

    In the main thread only, as Python allows; elsewhere nothing changes. A second Ctrl-C raises KeyboardInterrupt at
    once.
    """

    def __init__(self) -> None:
        self.wish = NOTHING
        self._before: dict[int, Any] = {}
        self._noted = 0.0

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _numbers():
                # under nohup, SIGHUP stays ignored; a background job of a script starts with SIGINT ignored, and yet
                # whoever sends it means it
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = self.wish == NOTHING
        if number == signal.SIGINT and not first and time.monotonic() > self._noted + AGAIN_SEC:
            raise KeyboardInterrupt
        self.wish = max(self.wish, DUMP + number)
        if first:
            self._noted = time.monotonic()
            if number == signal.SIGINT:
                with contextlib.suppress(OSError):  # not print(): the signal may have come in the middle of one
                    os.write(2, b"\nCtrl-C: stopping at the next step; once more stops at once\n")


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def outlive_signals() -> None:
    """For loader processes: a signal to the whole process group must not take them away before the step is done.

    SIGTERM from their parent, which is how multiprocessing ends them, still does.
    """
    for number in _numbers():
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # says who has sent a signal; Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class Agreement:
    """The largest wish of all ranks, the same on each of them.

    Ranks meet on the CPU, in a process group of its own, and read the result one step later, when it has long been
    there: neither the device nor, but for a rank a whole step behind, the host waits for it.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._sent: tuple[dist.Work, torch.Tensor] | None = None

    def exchange(self, wish: int) -> int:
        """Hand in this rank's wish; returns the wish handed in at the last call (alone: this one)."""
        if self._group is None:
            return wish
        agreed = self._receive()
        value = torch.tensor([wish])
        self._sent = (dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True), value)
        return agreed

    def finish(self, wish: int) -> int:
        """The wish that counts at the end; waits for all ranks."""
        agreed = self.exchange(wish)
        return max(agreed, self._receive())

    def _receive(self) -> int:
        if self._sent is None:
            return NOTHING
        (work, value), self._sent = self._sent, None
        work.wait()
        return int(value.item())
