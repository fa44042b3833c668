"""The settings of edm-fast train --arch=edm2: those of a published network where no option says otherwise."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from edm_fast.cli._options import Count
from edm_fast.errors import UserError
from edm_fast.networks.presets import edm2_training

KI = 1024
# as published, where they are not typed; tick, snap and dump are the INTERVALS
DEFAULTS = {"cond": True, "seed": 0, "tick": 128, "snap": 64, "dump": 1024}
INTERVALS = {"status": 128 * KI, "snapshot": 8 * KI * KI, "checkpoint": 128 * KI * KI}  # in images
ONLY_EDM2 = ("preset", "decay", "P_mean", "P_std", "ema_std", *INTERVALS)
NAMES = {"precond": "--precond", "augment": "--augment", "ema": "--ema"}  # what EDM2 has nothing for


def checked(opts: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The options; with --arch=edm2 those that were not typed are the preset's. UserError for what does not combine."""
    if opts["arch"] != "edm2":
        for name in (name for name in ONLY_EDM2 if name in typed):
            raise UserError(f"--{name.replace('ema_', 'ema-')} needs --arch=edm2")
        return opts
    for name in (name for name in NAMES if name in typed and opts[name] not in (0, "edm")):
        raise UserError(f"{NAMES[name]} does not go with --arch=edm2")
    settings = {**DEFAULTS, **edm2_training(opts["preset"]), "fp16": opts["precision"] in ("fp32", "tf32")}
    opts = {**opts, **{name: value for name, value in settings.items() if name not in typed}, "augment": 0}
    opts["cres"] = opts["cres"] or [1, 2, 3, 4]
    part = math.lcm(opts["batch"], KI) // KI
    ticks, expected = f"--tick={opts['tick']}, in 1024 images,", f"--tick={part}"
    if {*INTERVALS} & {*typed}:
        opts = {**opts, **_ticks(opts, typed)}
        ticks = f"the largest common part of --status, --snapshot and --checkpoint, {opts['tick'] * KI:,.0f} images,"
        expected = f"{part}Ki for each of them (0: none)"
    if opts["tick"] * KI % opts["batch"]:
        raise UserError(
            f"{ticks} is no multiple of --batch={opts['batch']}; expected {expected} or a multiple, or another batch"
        )
    return opts


def _ticks(opts: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """tick, snap and dump that give the intervals in images; one of 0 is left out, and a tick may come more often."""
    for name in (name for name in ("tick", "snap", "dump") if name in typed):
        raise UserError(f"--{name} does not go with --status, --snapshot and --checkpoint; expected one or the other")
    usual = (opts["tick"] * KI, opts["tick"] * KI * opts["snap"], opts["tick"] * KI * opts["dump"])
    status, snapshot, checkpoint = (opts[name] if name in typed else n for name, n in zip(INTERVALS, usual))
    tick, snap, dump = common_tick([status, snapshot, checkpoint], total_images(opts["duration"]))
    return {"tick": tick / KI, "snap": snap, "dump": dump}


def common_tick(intervals: Sequence[int], total: int) -> tuple[int, int, int]:
    """(images of a tick, ticks between snapshots, ticks between states) of INTERVALS in images, 0 for none."""
    tick = math.gcd(*intervals) or total
    return tick, intervals[1] // tick, intervals[2] // tick


def total_images(duration: float) -> int:
    """A Count is of images, another number of 2^20 of them."""
    return int(duration) if isinstance(duration, Count) else max(round(duration * KI), 1) * KI


def changes(opts: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the training loop in place of EDM's."""
    rampup = 10 if opts["lr_rampup"] is None else opts["lr_rampup"]
    return {
        "loss_kwargs": {
            "class_name": "training.training_loop.EDM2Loss",
            "P_mean": opts["P_mean"],
            "P_std": opts["P_std"],
        },
        "optimizer_kwargs": {"class_name": "torch.optim.Adam", "lr": opts["lr"], "betas": [0.9, 0.99], "eps": 1e-8},
        "lr_kwargs": {"ref_lr": opts["lr"], "ref_batches": opts["decay"], "rampup_Mimg": rampup},
        "ema_kwargs": {"class_name": "PowerFunctionEMA", "stds": opts["ema_std"]},
        "kimg_per_tick": opts["tick"] * KI / 1000,
        "total_kimg": total_images(opts["duration"]) / 1000,
    }
