"""edm-fast train --options: the settings of a run out of the file in its folder, ours or a published program's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from typing import Any

import click

from edm_fast import distributed
from edm_fast.cli._edm2_training import INTERVALS, common_tick
from edm_fast.cli._options_file import OPTIONS_NAME, START, read_json
from edm_fast.cli._training_settings import resume_settings
from edm_fast.errors import UserError
from edm_fast.training import check_settings, is_edm2, is_inside

# where to read and write, how to read, and what to show: they change no weight
BESIDE = (
    *("options", "outdir", "data", "desc", "nosubdir", "resume", "device"),
    *("workers", "cache", "quality", "preview", "log_to", "dry_run"),
)
NEEDED = (
    *("dataset_kwargs", "network_kwargs", "loss_kwargs", "optimizer_kwargs", "total_kimg", "batch_size", "seed"),
    *("kimg_per_tick", "snapshot_ticks", "state_dump_ticks"),
)
ONLY_TYPED = {"device": "--device", "measure": "--quality"}  # keywords of the training loop that no file holds
# of EDM2's published program: keys with the one value that is known here
FIXED = {"slice_nimg": None, "force_finite": True}
ENCODERS = ("StabilityVAEEncoder", "StandardRGBEncoder")  # which it is follows from the data set
COUNTS = ("total_kimg", "kimg_per_tick", "snapshot_ticks", "state_dump_ticks")  # which EDM2's program has in images
# what its training loop takes for objects that are left out
USUAL: dict[str, dict[str, Any]] = {
    "data_loader_kwargs": {"pin_memory": True, "num_workers": 2, "prefetch_factor": 2},
    "optimizer_kwargs": {"class_name": "torch.optim.Adam", "betas": [0.9, 0.99]},
    "ema_kwargs": {"class_name": "PowerFunctionEMA", "stds": [0.05, 0.1]},
}


def read_settings(opts: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Keywords of the training loop: those of the file --options, changed by what may be typed beside it."""
    path = opts["options"]
    refuse_others(typed)
    settings = read_json(path)
    state_typed = opts["resume"] not in (None, "auto")
    try:
        if "total_nimg" in settings:
            settings = from_edm2(settings)
        run_dir, processes = str(settings.pop("run_dir", "")), settings.pop("processes", None)
        settings = {k: v for k, v in settings.items() if v is not None or not k.endswith("_kwargs")}  # none: left out
        missing = [name for name in NEEDED if name not in settings]
        if missing:
            raise UserError(f"has no {', '.join(missing)}; expected the {OPTIONS_NAME} of a training run")
        for name in (name for name in ONLY_TYPED if name in settings):
            raise UserError(f"{name} is no setting of a file; expected {ONLY_TYPED[name]}")
        check_settings(**settings)
        for name in (name for name in ("class_name", "channel_mult") if name not in settings["network_kwargs"]):
            raise UserError(f"network_kwargs has no {name}; expected all keywords of the network but its sizes")
        state = settings.get("resume_state_dump")
        if state and run_dir and is_inside(state, run_dir) and not state_typed:
            what = f"the run went on from {state} in its own folder, and where it began is not told"
            raise UserError(f"{what}; expected --resume=FILE with a training state")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if state_typed:
        settings = {name: value for name, value in settings.items() if name not in START}
        settings |= resume_settings(opts["resume"], None, is_edm2(settings["network_kwargs"]))
    data = {"path": opts["data"]} if opts["data"] else {}
    data |= {"cache": opts["cache"]} if "cache" in typed else {}
    settings["dataset_kwargs"] = {**settings["dataset_kwargs"], **data}
    if "workers" in typed:
        settings["data_loader_kwargs"] = {**settings.get("data_loader_kwargs", {}), "num_workers": opts["workers"]}
    settings |= {
        own: opts[name] for name, own in (("preview", "preview_images"), ("log_to", "log_to")) if name in typed
    }
    warn_about_processes(path, processes, run_dir)
    return settings


def refuse_others(typed: Collection[str]) -> None:
    for name in (name for name in typed if name not in BESIDE):
        flags = {param.name: param.opts[0] for param in click.get_current_context().command.params}
        allowed = ", ".join(flags[beside] for beside in BESIDE[1:])
        raise UserError(f"{flags[name]} does not go with --options, whose file decides; expected at most {allowed}")


def from_edm2(found: dict[str, Any]) -> dict[str, Any]:
    """Settings of EDM2's published program, which counts in images and leaves out its own defaults."""
    settings = dict(found)
    for name in (name for name in FIXED if name in settings):
        if settings.pop(name) != FIXED[name]:
            expected = f"{json.dumps(FIXED[name])}, which alone is known here"
            raise UserError(f"{name} is {json.dumps(found[name])}; expected {expected}")
    for name in (name for name in COUNTS if name in settings):
        raise UserError(f"has {name} beside total_nimg; expected one of the two ways to count")
    encoder, total = settings.pop("encoder_kwargs", {}), settings.pop("total_nimg")
    intervals = [settings.pop(f"{name}_nimg", usual) for name, usual in INTERVALS.items()]
    for value, least in ((total, 1), *((value or 0, 0) for value in intervals)):
        if type(value) is not int or value < least:
            raise UserError(f"has {json.dumps(value)} for a number of images; expected an integer from {least} on")
    kind = str(encoder.get("class_name")).rpartition(".")[2] if isinstance(encoder, dict) else None
    if encoder != {} and (kind not in ENCODERS or len(encoder) > 1):
        words = json.dumps(encoder)
        raise UserError(f"encoder_kwargs are {words}; expected a class_name alone, one of {', '.join(ENCODERS)}")
    tick, snapshot, dump = common_tick([value or 0 for value in intervals], total)
    settings |= {"total_kimg": total / 1000, "kimg_per_tick": tick / 1000}
    settings |= {"snapshot_ticks": snapshot or None, "state_dump_ticks": dump or None}
    settings = {**USUAL, **settings}
    own: dict[str, dict[str, Any]] = {"network_kwargs": {"channel_mult": [1, 2, 3, 4]}}  # of its class
    own["dataset_kwargs"] = {"arrays": True, **({"encoder": kind} if encoder else {})}
    for key in (*USUAL, *own):
        if not isinstance(settings.get(key, {}), dict):
            raise UserError(f"{key} is {json.dumps(settings[key])}; expected an object")
    return settings | {key: {**value, **settings.get(key, {})} for key, value in own.items()}


def warn_about_processes(path: str, processes: Any, run_dir: str) -> None:
    """Each process draws random numbers of its own, so that their number decides, too. Published files have it in the
    name of the run folder, if at all."""
    match, now = re.search(r"-gpus(\d+)-batch", os.path.basename(run_dir)), distributed.world_size()
    before = processes if type(processes) is int else int(match[1]) if match else now
    if before != now and distributed.rank() == 0:
        words = f"the run of {path} had {before} process(es), this one has {now}: random numbers differ"
        click.echo(f"Warning: {words}", err=True)
