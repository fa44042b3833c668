"""Rank, world size and the few collective calls the commands need. Without torchrun all of them are trivial."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from edm_fast.errors import UserError

NOTICE = 10.0  # seconds of waiting for other processes before a line says so
TIMEOUT = 600.0  # seconds after which that is an error, unless EDM_FAST_JOIN_TIMEOUT says otherwise
EXPECTED = "expected all that torchrun sets (torchrun --standalone --nproc_per_node=N -m edm_fast ...)"
# what launchers call the number of processes and that of each; a step of Slurm may be smaller than its job
NUMBERED = {
    "WORLD_SIZE": "RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "SLURM_NTASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}
COPIES = tuple(NUMBERED)[1:]  # those of launchers whose copies know nothing of each other
ARRAY = "SLURM_ARRAY_TASK_"


def _integer(name: str, low: int, high: int | None = None) -> int:
    text = os.environ[name].strip()
    number = int(text) if text.lstrip("-").isdecimal() else None
    if number is None or number < low or (high is not None and number > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"the environment variable {name} is {text!r}; expected an integer {limits}")
    return number


def launched() -> int:
    """How many processes torchrun has started, whether they have met yet or not.

    UserError where the environment describes a group in part or makes no sense.
    """
    if not os.environ.get("RANK") and os.environ.get("WORLD_SIZE", "").strip() in ("", "1"):
        return 1
    _demand("WORLD_SIZE", "RANK")
    world = _integer("WORLD_SIZE", 1)
    _integer("RANK", 0, world - 1)
    if world > 1:
        _demand("MASTER_ADDR", "MASTER_PORT")
        _integer("MASTER_PORT", 1, 65535)
    return world


def _demand(*names: str) -> None:
    missing = [name for name in names if not os.environ.get(name, "").strip()]
    if missing:
        given = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)]
        raise UserError(
            f"the environment has {', '.join(given)} but no {', no '.join(missing)}; {EXPECTED}, or none of them for a "
            "single process"
        )


def _refuse_copies() -> None:
    """Other launchers start copies that know nothing of each other: all would write the same files."""
    if os.environ.get("RANK"):
        return
    found = [name for name in COPIES if os.environ.get(name, "").strip()]
    if found[:1] == ["SLURM_STEP_NUM_TASKS"]:
        found = [name for name in found if name != "SLURM_NTASKS"]
    for name in found:
        if os.environ[name].strip() not in ("0", "1"):
            raise UserError(
                f"{name} is {os.environ[name]} and RANK is not set: every one of these processes would do the whole "
                "work and write the same files; expected torchrun on each machine (under Slurm: srun "
                "--ntasks-per-node=1 torchrun --nnodes=... --nproc_per_node=... -m edm_fast ...), or a single process "
                f"(srun --ntasks=1, or {name}=1); edm-fast generate also takes --shard"
            )


def shard() -> tuple[int, int, str]:
    """(number of this process from 0, how many share the work, the variables that say so), without a group.

    The tasks of a Slurm job array times the processes that a launcher has started in each. UserError where the
    environment tells nothing, or in part.
    """
    index, count, names = _array_task()
    for size, number in NUMBERED.items():
        has_size, has_number = bool(_text(size)), bool(_text(number))
        if has_size != has_number and (size == "WORLD_SIZE" or (has_size and _text(size) != "1")):
            there, missing = (size, number) if has_size else (number, size)
            raise UserError(f"the environment has {there} but no {missing}; expected both, or --shard=I/N")
        if has_size and has_number:
            world = _integer(size, 1)
            index, count = index * world + _integer(number, 0, world - 1), count * world
            names = [*names, number, size]
            break
    if not names:
        raise UserError("the environment has no variables of Slurm, MPI or torchrun; expected --shard=I/N, such as 0/8")
    return index, count, ", ".join(names)


def _array_task() -> tuple[int, int, list[str]]:
    """(place of this task in its job array, number of tasks, the variables); 0 of 1 without an array."""
    task, size = f"{ARRAY}ID", f"{ARRAY}COUNT"
    if not _text(task):
        return 0, 1, []
    if not _text(size):
        raise UserError(f"the environment has {task} but no {size}; expected both, or --shard=I/N")
    count = _integer(size, 1)
    first = _integer(f"{ARRAY}MIN", 0) if _text(f"{ARRAY}MIN") else 0
    last = _integer(f"{ARRAY}MAX", 0) if _text(f"{ARRAY}MAX") else first + count - 1
    step = max((last - first) // max(count - 1, 1), 1)
    place, rest = divmod(_integer(task, 0) - first, step)
    if rest or first + step * (count - 1) != last or not 0 <= place < count:
        raise UserError(f"the {count} tasks of the job array are not evenly spaced; expected --shard=I/N")
    return place, count, [task, size]


def _text(name: str) -> str:
    return os.environ.get(name, "").strip()


def local_number() -> int:
    """Which of this machine's processes this one is, by any launcher; 0 where none says so."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"):
        if _text(name):
            return _integer(name, 0)
    return 0


def init(device: torch.device | str = "cpu") -> None:
    """Join the process group torchrun describes in the environment (nccl for CUDA devices, gloo otherwise).

    A CUDA device becomes the current one, with or without other processes: kernels launched by Triton, pinned memory
    and nccl go by that.
    """
    device = torch.device(device)
    _refuse_copies()
    if device.type == "cuda":
        torch.cuda.set_device(local_rank() if device.index is None else device)
    world = launched()
    if world == 1 or dist.is_initialized():
        return
    rank = _integer("RANK", 0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend=backend, store=_meet(rank, world), rank=rank, world_size=world)


def _meet(rank: int, world: int) -> dist.Store:
    """The store of the group, once every process has come to it; a line says whom it waits for."""
    host, port = os.environ["MASTER_ADDR"], _integer("MASTER_PORT", 1, 65535)
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
    serves = rank == 0 and not hosted
    limit = TIMEOUT if not os.environ.get("EDM_FAST_JOIN_TIMEOUT") else float(_integer("EDM_FAST_JOIN_TIMEOUT", 1))
    if not serves:  # asked for here, as torch's own attempts cannot be interrupted
        _wait(lambda: _unreachable(host, port), limit, loud=True)
    try:
        store = dist.TCPStore(host, port, world, serves, datetime.timedelta(seconds=limit), wait_for_workers=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        if serves and "address already in use" in reason.lower():
            reason = "it is in use; expected another MASTER_PORT, or torchrun --standalone"
        raise UserError(f"cannot open port {port} for the processes to meet at: {reason}") from None
    if not hosted and store.add(f"rank {rank}", 1) > 1:
        raise UserError(f"two processes have RANK={rank}; expected each number from 0 to {world - 1} once")
    started = _Start(dist.PrefixStore("edm-fast", store), rank, world)
    _wait(started.absent, limit, loud=rank == 0)
    return dist.PrefixStore(started.name, store)


class _Start:
    """Processes that were started together find each other in a store that may hold what earlier ones have left.

    torchrun keeps its store when it starts processes again, and each of its nodes has a count of restarts of its own.
    So every process leaves a mark that no other has, rank 0 lists the marks, and each process that finds itself in the
    list says so. The digest of the last list names the group.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._mark = uuid.uuid4().hex
        self.name = ""
        store.set(f"mark {rank}", self._mark)

    def absent(self) -> str | None:
        """Which processes are not here yet, in words; None once all have found each other."""
        with contextlib.suppress(RuntimeError):
            missing = self._missing()
            some = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
            return f"{len(missing)} of {self._world} processes (RANK {some})" if missing else None
        raise UserError("the process with RANK=0 has left before all had come")

    def _missing(self) -> list[int]:
        marks = self._read("mark") if self._rank == 0 else self._get("marks").split(",")
        self.name = hashlib.sha256(",".join(marks).encode()).hexdigest()
        if self._rank == 0:
            self._store.set("marks", ",".join(marks))
        if self._mark in marks:
            self._store.set(f"found {self._rank}", self.name)
        if self._rank == 0:
            missing = [other for other, name in enumerate(self._read("found")) if name != self.name]
            if not missing:
                self._store.set("start", self.name)
            return missing
        if self._get("start") == self.name and self._mark in marks:
            return []
        return [other for other, mark in enumerate(self._read("mark")) if not mark] or [0]

    def _read(self, what: str) -> list[str]:
        return [self._get(f"{what} {other}") for other in range(self._world)]

    def _get(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""


def _unreachable(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return f"the process with RANK=0, at {host}:{port} ({error.strerror or error})"
    return None


def _wait(missing: Callable[[], str | None], limit: float, loud: bool) -> None:
    """Until missing() is None; it names what is waited for."""
    start, told = time.monotonic(), not loud
    while (what := missing()) is not None:
        waited = time.monotonic() - start
        if waited > limit:
            raise UserError(f"waited {limit:g} s for {what}; EDM_FAST_JOIN_TIMEOUT=SECONDS allows for more")
        if waited > NOTICE and not told:
            print(f"waiting for {what}", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.05 if waited < 1 else 0.5)


def shutdown() -> None:
    """Leave the process group, if one was joined; every rank must come here."""
    if dist.is_initialized():
        # gloo's threads may still be dropping tensors of the last call, for which they need the interpreter. The
        # group's destructor would hold it while it waits for them (seen with torch 2.6), and after
        # DistributedDataParallel none waits, as something keeps the group (2.13): a thread that asks an ending
        # interpreter aborts the process. A barrier and a pause let them finish, on a busy machine too
        dist.barrier()
        time.sleep(0.2)
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Which of this machine's processes this one is, and so its GPU."""
    if not os.environ.get("LOCAL_RANK", "").strip():
        if launched() > 1:
            raise UserError(f"the environment has no LOCAL_RANK, which chooses the GPU; {EXPECTED}")
        return 0
    return _integer("LOCAL_RANK", 0)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: Any, source: int = 0) -> Any:
    """The `value` of rank `source`, on every rank. Any picklable object."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def print0(*args: Any, **kwargs: Any) -> None:
    """print() on rank 0 only."""
    if rank() == 0:
        print(*args, **kwargs)
