"""Rank, world size and the few collective calls the commands need. Without torchrun all of them are trivial."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist


def launched() -> int:
    """How many processes torchrun has started, whether they have met yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def init(device: torch.device | str = "cpu") -> None:
    """Join the process group torchrun describes in the environment (nccl for CUDA devices, gloo otherwise).

    A CUDA device becomes the current one, with or without other processes: kernels launched by Triton, pinned memory
    and nccl go by that.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(local_rank() if device.index is None else device)
    if launched() == 1 or dist.is_initialized():
        return
    dist.init_process_group(backend="nccl" if device.type == "cuda" else "gloo")


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
    return int(os.environ.get("LOCAL_RANK", "0"))


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
