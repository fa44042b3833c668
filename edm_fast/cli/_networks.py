"""Networks by name on the command line, and in which precision they run."""

from __future__ import annotations

from typing import Any

import torch

from edm_fast import distributed
from edm_fast.backend import requested
from edm_fast.checkpoint import DEMO, load
from edm_fast.cli._ranks import on_first_rank
from edm_fast.errors import UserError
from edm_fast.plan import PRECISIONS as ACCELERATED
from edm_fast.plan import accelerate, unaccelerated

PRECISIONS = tuple(dict.fromkeys((*ACCELERATED["cuda"], *ACCELERATED["cpu"])))


def load_network(device: torch.device, name: str | None) -> torch.nn.Module:
    """The first rank loads (and downloads) before the others do."""
    if name is None:
        name = DEMO
        distributed.print0("No --network given: using the demo model that comes with edm-fast (MNIST digits, 32x32).")
    first: list[torch.nn.Module] = []
    on_first_rank(lambda: first.append(load(name, device=device)))
    return first[0] if first else load(name, device=device)


def way_to_draw(precision: str | None, device: torch.device) -> str:
    """ "accelerated PRECISION"; without a precision on a GPU "stored", and "plain" with the backends of its ops where a
    CPU cannot accelerate. UserError if a precision was asked for that cannot run.
    """
    on_gpu = device.type == "cuda"
    if precision is None and on_gpu:
        return "stored"
    allowed = ACCELERATED[device.type]
    if precision is not None and precision not in allowed:
        raise UserError(f"--precision {precision} does not run on {device.type}; expected {', '.join(allowed)}")
    backends, reason = requested(), unaccelerated(device)
    if precision is not None and reason is not None:
        raise UserError(f"--precision {precision} does not run here: {reason}; expected no --precision")
    return f"accelerated {precision or 'fp32'}" if reason is None else f"plain {backends}"


def precision_that_runs(precision: str, device: torch.device) -> str | None:
    """That of a sampler file, or None, which is as exact or more so, where it cannot run."""
    try:
        way_to_draw(precision, device)
    except UserError:
        return None
    return precision


def prepared(net: Any, way: str) -> Any:
    """`net` ready to run in this way; plain and stored networks run as they are, with torch's own settings."""
    how, _, precision = way.partition(" ")
    return accelerate(net, precision) if how == "accelerated" else net
