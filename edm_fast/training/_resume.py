"""How a run begins: afresh, from weights (transfer), from a dump of this project, or from a published dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edm_fast import checkpoint, distributed
from edm_fast.errors import UserError
from edm_fast.training._run import Run
from edm_fast.training._state import State, read_state, restore


def stored_state(path: str | None) -> State | None:
    """The dump at `path` if it is one of this project's."""
    return None if path is None else read_state(path)


def resume(
    run: Run, stored: State | None, resume_pkl: str | None, resume_state_dump: str | None, resume_kimg: int
) -> None:
    """Fill `run` from whatever there is to go on from."""
    if stored is not None:
        distributed.print0(f"Resuming from {resume_state_dump}", flush=True)
        restore(run, stored, str(resume_state_dump))
        return
    published = None if resume_state_dump is None else checkpoint.load_training_state(resume_state_dump)
    if resume_pkl is not None:
        distributed.print0(f"Loading weights from {resume_pkl}", flush=True)
        fill_from_snapshot(run, resume_pkl)
    if published is not None:
        distributed.print0(f"Resuming from {resume_state_dump}", flush=True)
        fill_from_published(run, published, str(resume_state_dump))
    run.cur_nimg = run.tick_start_nimg = resume_kimg * 1000


def fill_from_snapshot(run: Run, path: str) -> None:
    """net and ema <- tensors of the snapshot's average that they have, too; shapes must agree."""
    other = Path(path).with_suffix(".safetensors")
    if "://" not in path and not Path(path).exists() and other.exists():
        path = str(other)
    source = checkpoint.load(path).state_dict()
    count = [fill_by_name(module, source, path, complete=False) for module in (run.net, *run.averages)][0]
    wanted = len(run.net.state_dict())
    if not count:
        raise UserError(f"{path} has no tensor of the network given by the options; expected one of its architecture")
    if not count == wanted == len(source):
        left = f"{wanted - count} of the network keep their start values, {len(source) - count} of the file are unused"
        distributed.print0(f"{count} tensors taken; {left}", flush=True)


@torch.no_grad()
def fill_by_name(module: torch.nn.Module, source: dict[str, Any], where: str, complete: bool) -> int:
    """Copy tensors by name; returns how many. `complete`: the source must have all of them."""
    copied = 0
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name not in source:
            if complete:
                raise UserError(f"{where} has no tensor {name}; expected the network given by the options")
            continue
        if source[name].shape != tensor.shape:
            shape, expected = list(source[name].shape), list(tensor.shape)
            raise UserError(f"{where}: {name} has shape {shape}; the network given by the options needs {expected}")
        tensor.copy_(source[name])
        copied += 1
    return copied


def fill_from_published(run: Run, state: dict[str, Any], where: str) -> None:
    """net and optimizer from a training state of the published code."""
    fill_by_name(run.net, state["net"], where, complete=True)
    try:
        run.optimizer.load_state_dict(state["optimizer_state"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: the optimizer state does not fit the network: {error}") from error
