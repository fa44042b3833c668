"""Where a verb computes."""

from __future__ import annotations

import torch

from edm_fast import distributed
from edm_fast.errors import UserError


def resolve_device(name: str, group: bool = True) -> torch.device:
    """The device named, or the best at hand for "auto"; for verbs that join a group, the local rank's GPU."""
    has_cuda = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if has_cuda else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise UserError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:N (others lack float64)")
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
