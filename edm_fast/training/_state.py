"""State dumps: all that a run needs to go on as if it had never stopped. Plain tensors and numbers, no code.

Besides network, average and optimizer a dump holds the exact image count, the place in the data stream and the random
generators of every rank, so that a run on the CPU that is killed and resumed ends bit-identical to one that is not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from edm_fast import distributed
from edm_fast.errors import UserError, UserOSError
from edm_fast.files import atomic_write
from edm_fast.training._run import Run

FORMAT = "edm-fast training state 1"
NAME = re.compile(r"training-state-(\d+)\.pt")

KEYS = {"net", "ema", "optimizer_state", "cur_nimg", "tick", "tick_start_nimg", "data_position", "seed"}
KEYS |= {"dataset_size", "rng", "stats_lines", "elapsed_sec"}

State = dict[str, Any]


def _rng_state(device: torch.device) -> dict[str, Any]:
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = legacy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
    }


def _set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def _gather(value: Any) -> list[Any]:
    """`value` of every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(values, value)
    return values


def save_state(run: Run, path: Path, stats_lines: int, elapsed_sec: float) -> None:
    """Write a dump (rank 0; the other ranks hand over their generators)."""
    generators = _gather(_rng_state(run.device))
    if distributed.rank() != 0:
        return
    state = {
        "format": FORMAT,
        "net": run.net.state_dict(),
        "ema": run.ema.state_dict(),
        "optimizer_state": run.optimizer.state_dict(),
        "cur_nimg": run.cur_nimg,
        "tick": run.tick,
        "tick_start_nimg": run.tick_start_nimg,
        "data_position": run.data_position,
        "seed": run.options.seed,
        "dataset_size": len(run.dataset),
        "batch_size": run.options.batch_size,
        "batch_gpu": run.options.batch_gpu,
        "rng": generators,
        "stats_lines": stats_lines,
        "elapsed_sec": elapsed_sec,
    }
    with atomic_write(path, kind="torch") as file:
        torch.save(state, file)


def read_state(path: str | Path) -> State | None:
    """A dump of this project, or None if the file is something else (perhaps a published training state)."""
    if not Path(path).is_file():
        raise UserOSError(f"training state {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # damaged bytes can make the reader fail in any way
        return None
    whole = isinstance(state, dict) and state.get("format") == FORMAT and KEYS <= state.keys()
    return state if whole else None


def latest_state(run_dir: str | Path) -> tuple[Path, int] | None:
    """The newest whole dump in a run folder and its seed: a damaged one is passed over for the one before it."""
    folder = Path(run_dir)
    if not folder.is_dir():
        return None
    found = [(int(m[1]), entry) for entry in folder.iterdir() if (m := NAME.fullmatch(entry.name))]
    for _, path in sorted(found, reverse=True):
        state = read_state(path)
        if state is not None:
            return path, state["seed"]
        distributed.print0(f"Passing over {path.name}: not a whole training state of edm-fast")
    return None


def restore(run: Run, state: State) -> None:
    """Bring a fresh run to where `state` was dumped."""
    if state["dataset_size"] != len(run.dataset):
        raise UserError(
            f"the training state was made with {state['dataset_size']} images; the data set has {len(run.dataset)}"
        )
    try:
        run.net.load_state_dict(state["net"])
        run.ema.load_state_dict(state["ema"])
        run.optimizer.load_state_dict(state["optimizer_state"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the training state is of another network or optimizer: {reason}") from error
    run.cur_nimg = state["cur_nimg"]
    run.tick = state["tick"]
    run.tick_start_nimg = state["tick_start_nimg"]
    run.elapsed_sec = state["elapsed_sec"]
    if len(state["rng"]) == distributed.world_size():
        _set_rng_state(state["rng"][distributed.rank()], run.device)
    else:
        torch.manual_seed((torch.initial_seed() + run.cur_nimg) % (1 << 31))  # not the numbers of the first steps again
        distributed.print0("The training state is of another number of processes: random numbers start anew")
