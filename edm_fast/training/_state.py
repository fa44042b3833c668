"""State dumps: all that a run needs to go on as if it had never stopped. Tensors, numbers and texts in safetensors.

Besides network, average and optimizer a dump holds the exact image count, the place in the data stream, and of every
rank the random generators and the sums of the current tick's statistics, so that a run on the CPU that is stopped or
killed and resumed ends bit-identical to one that is not, wherever in a tick the dump was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from edm_fast import checkpoint, distributed
from edm_fast.errors import UserError, UserOSError
from edm_fast.training._build import load_optimizer
from edm_fast.training._folder import is_inside
from edm_fast.training._run import Run

FORMAT = "edm-fast training state 1"
ENDING = ".safetensors"  # .pt: of earlier versions, and published
NAME = re.compile(r"training-state-(\d+)\.(pt|safetensors)")

KEYS = {"net", "ema", "optimizer_state", "cur_nimg", "tick", "tick_start_nimg", "data_position", "seed"}
KEYS |= {"dataset_size", "rng", "stats_lines", "elapsed_sec"}

# settings that a resumed run is compared by, as the keywords of training_loop
COMPARED = ["network_kwargs", "loss_kwargs", "optimizer_kwargs", "augment_kwargs", "batch_size", "ema_halflife_kimg"]
COMPARED += ["lr_rampup_kimg", "loss_scaling", "lr_kwargs", "ema_kwargs"]

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


def save_state(run: Run, path: Path, automatic: bool, **progress: float) -> None:
    """Write a dump (rank 0; the other ranks hand over their generators and sums).

    progress: stats_lines, elapsed_sec (of the run) and tick_sec (of the current tick). The newest keep_states
    `automatic` ones stay; a dump that replaces one the user asked for (of the same thousand images) counts as such.
    """
    ranks = _gather({"rng": _rng_state(run.device), "stats": run.stats.state()})
    if distributed.rank() != 0:
        return
    automatic = automatic and (path.name in run.automatic_states or not path.exists())
    run.automatic_states = [name for name in run.automatic_states if name != path.name]
    run.automatic_states += [path.name] if automatic else []
    state = {
        "format": FORMAT,
        "class_name": type(run.net).__name__,  # with these two, load() builds the networks
        "init_kwargs": run.net.init_kwargs,
        "net": run.net.state_dict(),
        "ema": run.ema.state_dict(),
        **({} if run.recipe.averages is None else {"averages": run.recipe.averages.state_dict()}),
        "optimizer_state": run.optimizer.state_dict(),
        "scaler": run.precision.scaler.state_dict(),
        "cur_nimg": run.cur_nimg,
        "tick": run.tick,
        "tick_start_nimg": run.tick_start_nimg,
        "data_position": run.data_position,
        "seed": run.options.seed,
        "ema_rampup_ratio": run.options.ema_rampup_ratio,
        "dataset_size": len(run.dataset),
        "batch_size": run.options.batch_size,
        "batch_gpu": run.options.batch_gpu,
        "settings": settings_text(run),
        "rng": [rank["rng"] for rank in ranks],
        "stats": [rank["stats"] for rank in ranks],
        "automatic": automatic,
        **progress,
    }
    checkpoint.save_state_file(path, run.net, state)
    keep = run.options.keep_states
    for name in run.automatic_states[:-keep]:
        path.with_name(name).unlink(missing_ok=True)
    run.automatic_states = run.automatic_states[-keep:]


def settings_text(run: Run) -> str:
    """COMPARED settings as JSON, one entry for each keyword inside them; class names without their modules."""
    flat: dict[str, Any] = {}
    for name in COMPARED:
        value = getattr(run.options, name)
        inner = dict(value) if isinstance(value, Mapping) else {"": value}
        if isinstance(inner.get("class_name"), str):
            inner["class_name"] = inner["class_name"].rpartition(".")[2]
        flat |= {f"{name.removesuffix('_kwargs')}.{key}".rstrip("."): item for key, item in inner.items()}
    if run.options.precision != "fp32":  # older states do not say
        flat["precision"] = run.options.precision
    return json.dumps(flat, default=str, sort_keys=True)


def compare_settings(run: Run, stored: str) -> None:
    """Another preconditioner or loss is refused (their tensors would fit); other differences are said."""
    before, now = json.loads(stored), json.loads(settings_text(run))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    for key in ("network.class_name", "loss.class_name"):
        if key in changed:
            raise UserError(f"the training state is of a run with {before.get(key)}; the options say {now.get(key)}")
    if changed:
        pairs = ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in changed)
        distributed.print0(f"Settings other than those of the run that goes on: {pairs}", flush=True)


def read_state(path: str | Path) -> State | None:
    """A dump of this project, or None if the file is something else (perhaps a published training state)."""
    if not Path(path).is_file():
        raise UserOSError(f"training state {path} does not exist")
    state = _read(path)
    whole = isinstance(state, dict) and state.get("format") == FORMAT and KEYS <= state.keys()
    return state if whole else None


def _read(path: str | Path, tensors: bool = True) -> Any:
    """What a file holds, or None if it is damaged or of another kind."""
    try:
        return checkpoint.load_state_file(Path(path), tensors)
    except checkpoint.CheckpointError as error:
        if isinstance(error.__context__, OSError):
            raise
        return None


def latest_state(run_dir: str | Path) -> tuple[Path, int] | None:
    """The newest whole dump in a run folder and its seed: a damaged one is passed over for the one before it."""
    folder = Path(run_dir)
    if not folder.is_dir():
        return None
    for _, path in reversed(_numbered(folder)):
        state = read_state(path)
        if state is not None:
            return path, state["seed"]
        distributed.print0(f"Passing over {path.name}: not a whole training state of edm-fast")
    return None


def automatic_states(folder: Path) -> list[str]:
    """Names of the automatic dumps in a run folder, oldest first."""
    states = ((path.name, _read(path, tensors=False)) for _, path in _numbered(folder))
    return [name for name, state in states if isinstance(state, dict) and state.get("automatic") is True]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The dumps by number of images; of two with one, that of an earlier version comes first."""
    return sorted((int(m[1]), entry) for entry in folder.iterdir() if (m := NAME.fullmatch(entry.name)))


def restore(run: Run, state: State, path: str | Path) -> None:
    """Bring a fresh run to where `state` was dumped; `path` is its file."""
    if state["dataset_size"] != len(run.dataset):
        raise UserError(
            f"the training state was made with {state['dataset_size']} images; the data set has {len(run.dataset)}"
        )
    if "settings" in state:
        compare_settings(run, state["settings"])
    try:
        run.net.load_state_dict(state["net"])
        run.ema.load_state_dict(state["ema"])
        if run.recipe.averages is not None:
            run.recipe.averages.load_state_dict(state["averages"])
            run.ema = run.averages[0]
        load_optimizer(run.optimizer, state["optimizer_state"], run.options.optimizer_kwargs)
        if state.get("scaler") and run.precision.scaler.is_enabled():
            run.precision.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the training state is of another network or optimizer: {reason}") from error
    run.cur_nimg = state["cur_nimg"]
    run.tick = state["tick"]
    run.tick_start_nimg = state["tick_start_nimg"]
    run.elapsed_sec, run.tick_sec = state["elapsed_sec"], state.get("tick_sec", 0.0)
    if is_inside(path, run.options.run_dir):
        run.automatic_states = automatic_states(run.options.run_dir)
    stats = state.get("stats", [])
    if len(state["rng"]) == distributed.world_size():
        _set_rng_state(state["rng"][distributed.rank()], run.device)
        stats = stats[distributed.rank() :][:1]
    else:
        torch.manual_seed((torch.initial_seed() + run.cur_nimg) % (1 << 31))  # not the numbers of the first steps again
        distributed.print0("The training state is of another number of processes: random numbers start anew")
        stats = stats if distributed.rank() == 0 else []
    for sums in stats:
        run.stats.add(sums, run.device)
