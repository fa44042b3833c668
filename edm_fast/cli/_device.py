"""Where a verb computes."""

from __future__ import annotations

import torch

from edm_fast import distributed
from edm_fast.errors import UserError


def named_device(name: str) -> torch.device:
    """The device of this name, whether it is there or not."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:N (others lack float64)")
    return device


def resolve_device(name: str, group: bool = True) -> torch.device:
    """The device named, or the best at hand for "auto"; for verbs that join a group, the local rank's GPU."""
    has_cuda = torch.cuda.is_available()
    device = named_device(("cuda" if has_cuda else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if has_cuda else 0
        if device.index is not None and group and distributed.launched() > 1:
            raise UserError(f"--device {name}: each of several processes takes a GPU of its own; expected cuda or auto")
        index = device.index
        if index is None:
            index = distributed.local_rank() if group else 0
        if index >= count:
            raise UserError(f"--device {name}: torch sees {count} CUDA devices")
        device = torch.device("cuda", index)
    return device


def own_gpu(device: torch.device, name: str) -> torch.device:
    """For processes that form no group: a GPU of this machine by the number a launcher gives, unless `name` has one."""
    if device.type == "cuda":
        if torch.device("cuda" if name == "auto" else name).index is None:
            device = torch.device("cuda", distributed.local_number() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device
