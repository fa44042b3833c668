"""How a run begins: afresh, from weights (transfer), from a dump of this project, or from a published dump.

A published dump of EDM has network and optimizer alone, and the average is that of a snapshot; one of EDM2 has all that
the run needs but its seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edm_fast import checkpoint, distributed
from edm_fast.errors import UserError, one_line
from edm_fast.training._averages import TraditionalEMA
from edm_fast.training._build import load_optimizer
from edm_fast.training._run import Run
from edm_fast.training._state import State, read_state, restore


def read_dump(path: str | None) -> tuple[State | None, State | None]:
    """(the dump at `path` if it is one of this project's, otherwise the published one); None for what is not there."""
    stored = None if path is None else read_state(path)
    return stored, None if path is None or stored is not None else checkpoint.load_training_state(path)


def data_position(stored: State | None, published: State | None) -> int:
    """Places of the index stream that a dump has used up; those of EDM do not say and begin anew."""
    if stored is not None:
        return int(stored["data_position"])
    return images_seen(published or {}) or 0


def images_seen(published: State) -> int | None:
    """By a published dump of EDM2; None of others."""
    state = published.get("state")
    seen = state.get("cur_nimg") if isinstance(state, dict) else None
    return seen if isinstance(seen, int) else None


def resume(
    run: Run,
    stored: State | None,
    published: State | None,
    resume_pkl: str | None,
    resume_state_dump: str | None,
) -> None:
    """Fill `run` from whatever there is to go on from."""
    if stored is not None:
        distributed.print0(f"Resuming from {resume_state_dump}", flush=True)
        restore(run, stored, str(resume_state_dump))
        return
    if resume_pkl is not None:
        distributed.print0(f"Loading weights from {resume_pkl}", flush=True)
        fill_from_snapshot(run, resume_pkl)
    if published is not None:
        distributed.print0(f"Resuming from {resume_state_dump}", flush=True)
        fill_from_published(run, published, str(resume_state_dump))
        if (seen := images_seen(published)) is not None:
            fill_averages(run, published["ema"], str(resume_state_dump))
            tick = round(run.options.kimg_per_tick * 1000)
            run.cur_nimg, run.tick, run.tick_start_nimg = seen, seen // tick + 1, seen // tick * tick
            return
    run.cur_nimg = run.tick_start_nimg = run.options.resume_kimg * 1000


def fill_averages(run: Run, averages: dict[str, State], where: str) -> None:
    """The averages of EDM2 from a published dump, whose widths replace the run's."""
    if run.recipe.averages is None or ("" in averages) != isinstance(run.recipe.averages, TraditionalEMA):
        raise UserError(f"{where} holds averages of EDM2 that are not of the kind of this run; expected --arch=edm2")
    try:
        by_width = {"emas": [*averages.values()], "stds": [*averages]}
        run.recipe.averages.load_state_dict(averages.get("", by_width))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{where}: the averages do not fit the network: {one_line(error)[:200]}") from error
    run.ema = run.averages[0]


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
        load_optimizer(run.optimizer, state["optimizer_state"], run.options.optimizer_kwargs)
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: the optimizer state does not fit this run: {error}") from error
