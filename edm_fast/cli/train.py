"""edm-fast train: options to training settings, a run folder, and the training loop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click
import torch

from edm_fast import distributed
from edm_fast.cli._device import resolve_device
from edm_fast.cli._options import (
    INPUT_PATH,
    INPUT_PATH_OR_URL,
    INT_LIST,
    NON_NEGATIVE,
    NON_NEGATIVE_INT,
    OUTPUT_PATH,
    POSITIVE,
    POSITIVE_INT,
    PROBABILITY,
)
from edm_fast.errors import UserError, UserOSError
from edm_fast.files import atomic_write
from edm_fast.networks import ARCHITECTURES
from edm_fast.training import ImageFolderDataset, latest_state, training_loop

PRECONDS = {"vp": ("VPPrecond", "VPLoss"), "ve": ("VEPrecond", "VELoss"), "edm": ("EDMPrecond", "EDMLoss")}
# plain coin flips, and the rest with the probability given by --augment
AUGMENT = {"xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
AUGMENT_LABELS = 9
RUN_NAME = re.compile(r"(\d+)-?(.*)")
OWN_FILES = re.compile(r"\.(training-state-|network-snapshot-|preview-|training_options\.json\.|stats\.jsonl\.)")


def dataset_settings(data: str, cond: bool, xflip: bool, cache: bool) -> tuple[dict[str, Any], str]:
    """The data set's keywords, with size and resolution as found, and its name."""
    kwargs: dict[str, Any] = {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": data,
        "use_labels": cond,
        "xflip": xflip,
        "cache": cache,
    }
    dataset = ImageFolderDataset(**{key: value for key, value in kwargs.items() if key != "class_name"})
    distributed.print0(dataset.survey(halvings=2))
    if cond and not dataset.has_labels:
        raise UserError(f"--cond=1 needs labels; {data} has none (expected a dataset.json with labels)")
    return {**kwargs, "resolution": dataset.resolution, "max_size": len(dataset)}, dataset.name


def network_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """The network's keywords: the architecture, then what the options change."""
    kwargs = dict(ARCHITECTURES[opts["arch"]])
    kwargs["class_name"] = f"training.networks.{PRECONDS[opts['precond']][0]}"
    if opts["cbase"] is not None:
        kwargs["model_channels"] = opts["cbase"]
    if opts["cres"] is not None:
        kwargs["channel_mult"] = opts["cres"]
    if opts["num_blocks"] is not None:
        kwargs["num_blocks"] = opts["num_blocks"]
    if opts["augment"]:
        kwargs["augment_dim"] = AUGMENT_LABELS
    return {**kwargs, "dropout": opts["dropout"], "use_fp16": opts["fp16"]}


def resume_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """Where the run goes on from, for --resume FILE and --transfer."""
    if opts["transfer"] is not None:
        if opts["resume"] is not None:
            raise UserError("--transfer and --resume cannot be used together; expected one of them")
        return {"resume_pkl": opts["transfer"], "ema_rampup_ratio": None}
    if opts["resume"] in (None, "auto"):
        return {}
    match = re.fullmatch(r"training-state-(\d+)\.pt", os.path.basename(opts["resume"]))
    if match is None or not os.path.isfile(opts["resume"]):
        raise UserError(f"--resume={opts['resume']} is not an existing file named training-state-<digits>.pt")
    snapshot = os.path.join(os.path.dirname(opts["resume"]), f"network-snapshot-{match[1]}.pkl")
    return {"resume_pkl": snapshot, "resume_kimg": int(match[1]), "resume_state_dump": opts["resume"]}


def training_settings(opts: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Keywords of the training loop in the published layout, and the run's name without its number."""
    dataset_kwargs, name = dataset_settings(opts["data"], opts["cond"], opts["xflip"], opts["cache"])
    settings: dict[str, Any] = {
        "dataset_kwargs": dataset_kwargs,
        "data_loader_kwargs": {"pin_memory": True, "num_workers": opts["workers"], "prefetch_factor": 2},
        "network_kwargs": network_settings(opts),
        "loss_kwargs": {"class_name": f"training.loss.{PRECONDS[opts['precond']][1]}"},
        "optimizer_kwargs": {"class_name": "torch.optim.Adam", "lr": opts["lr"], "betas": [0.9, 0.999], "eps": 1e-8},
    }
    if opts["augment"]:
        pipe = {"class_name": "training.augment.AugmentPipe", "p": opts["augment"]}
        settings["augment_kwargs"] = {**pipe, **AUGMENT}
    settings |= {
        "total_kimg": max(int(opts["duration"] * 1000), 1),
        "ema_halflife_kimg": int(opts["ema"] * 1000),
        "batch_size": opts["batch"],
        "batch_gpu": opts["batch_gpu"],
        "loss_scaling": opts["ls"],
        "cudnn_benchmark": opts["bench"],
        "kimg_per_tick": opts["tick"],
        "snapshot_ticks": opts["snap"],
        "state_dump_ticks": opts["dump"],
        "seed": common_seed(opts["seed"]),
    }
    settings |= resume_settings(opts)
    settings |= own_settings(opts)
    kind = "cond" if opts["cond"] else "uncond"
    precision = "fp16" if opts["fp16"] else "fp32"
    run = f"{name}-{kind}-{opts['arch']}-{opts['precond']}"
    run += f"-gpus{distributed.world_size()}-batch{opts['batch']}-{precision}"
    return settings, f"{run}-{opts['desc']}" if opts["desc"] is not None else run


def own_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """Settings the published program does not have, where they differ from the loop's defaults."""
    settings: dict[str, Any] = {}
    if opts["lr_rampup"] is not None:
        settings["lr_rampup_kimg"] = opts["lr_rampup"] * 1000
    if opts["snapshot_format"] != "safetensors":
        settings["snapshot_format"] = opts["snapshot_format"]
    if opts["preview"] != 32:
        settings["preview_images"] = opts["preview"]
    return settings


def common_seed(seed: int | None) -> int:
    """The seed given, or a random one that all ranks share."""
    if seed is None:
        seed = int(torch.seed() % (1 << 31))
    return distributed.broadcast_object(seed)


def pick_run_dir(outdir: str, name: str, nosubdir: bool, auto: bool) -> str:
    """outdir itself, or a numbered folder in it: with --resume auto the newest of this name, otherwise a new one."""
    if nosubdir:
        return outdir
    found: list[tuple[int, str, str]] = []
    if os.path.isdir(outdir):
        folders = [entry.name for entry in os.scandir(outdir) if entry.is_dir()]
        found = [(int(match[1]), match[2], folder) for folder in folders if (match := RUN_NAME.fullmatch(folder))]
    if auto:
        same = [(number, folder) for number, other, folder in found if other == name]
        if same:
            return os.path.join(outdir, max(same)[1])
    return os.path.join(outdir, f"{max((number for number, _, _ in found), default=-1) + 1:05d}-{name}")


class Tee:
    """Standard output that is also appended to a file."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def console_log(path: Path) -> Iterator[None]:
    """Copy the console to a file, and the reason if the run ends with an error."""
    with (
        open(path, "a", encoding="utf-8", errors="backslashreplace") as file,
        contextlib.redirect_stdout(Tee(sys.stdout, file)),
    ):  # type: ignore
        try:
            yield
        except Exception as error:
            file.write(f"{type(error).__name__}: {error}\n")
            raise


def print_settings(settings: dict[str, Any], run_dir: str) -> None:
    """What the run will do, for people."""
    print("Settings:")
    print(json.dumps({**settings, "run_dir": run_dir}, indent=2))
    processes = distributed.world_size()
    print(f"{run_dir}: {settings['total_kimg']} kimg of {settings['dataset_kwargs']['path']}, {processes} process(es)")
    print(flush=True)


def prepare_auto(run_dir: str) -> dict[str, Any]:
    """--resume auto: settings that name the newest whole state in run_dir; what a killed process left is cleared."""
    for leftover in Path(run_dir).glob(".*.tmp"):
        if OWN_FILES.match(leftover.name):  # the folder may be shared: with --nosubdir it is whatever the user says
            leftover.unlink(missing_ok=True)
    found = latest_state(run_dir)
    if found is None:
        print("Nothing to resume: starting anew", flush=True)
        Path(run_dir, "stats.jsonl").unlink(missing_ok=True)
        return {}
    path, seed = found
    return {"resume_state_dump": str(path), "seed": seed}


def launch(settings: dict[str, Any], run_dir: str, auto: bool, device: torch.device) -> None:
    """Make the run folder, find the dump to go on from, and train."""
    if auto:
        settings |= distributed.broadcast_object(prepare_auto(run_dir) if distributed.rank() == 0 else None)
    if distributed.rank() != 0:
        distributed.barrier()
        training_loop(run_dir=run_dir, device=device, **settings)
        return
    try:
        os.makedirs(run_dir, exist_ok=True)
        with atomic_write(Path(run_dir) / "training_options.json", "w", kind="json") as file:
            json.dump({**settings, "run_dir": run_dir}, file, indent=2)
    except OSError as error:
        raise UserOSError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    distributed.barrier()
    with console_log(Path(run_dir) / "log.txt"):
        print_settings(settings, run_dir)
        training_loop(run_dir=run_dir, device=device, **settings)


@click.command()
@click.option("--outdir", help="Where the results go", metavar="DIR", type=OUTPUT_PATH, required=True)
@click.option("--data", help="Data set", metavar="ZIP|DIR", type=INPUT_PATH, required=True)
@click.option("--cond", help="Class-conditional, by the labels of the data set", type=bool, default=False)
@click.option("--arch", help="Architecture", type=click.Choice(list(ARCHITECTURES)), default="ddpmpp")
@click.option("--precond", help="Preconditioning and loss", type=click.Choice(list(PRECONDS)), default="edm")
@click.option("--duration", help="Length, in million images", metavar="MIMG", type=POSITIVE, default=200.0)
@click.option("--batch", help="Batch size of all processes together", metavar="INT", type=POSITIVE_INT, default=512)
@click.option("--batch-gpu", help="Largest batch of one backward pass  [default: no limit]", type=POSITIVE_INT)
@click.option("--cbase", help="Channel multiplier  [default: by architecture]", metavar="INT", type=POSITIVE_INT)
@click.option("--cres", help="Channels per resolution, e.g. 1,2,2  [default: by architecture]", type=INT_LIST)
@click.option("--num-blocks", help="Residual blocks per resolution  [default: by architecture]", type=POSITIVE_INT)
@click.option("--lr", help="Learning rate", metavar="FLOAT", type=POSITIVE, default=1e-3)
@click.option("--ema", help="Half-life of the weight average, in million images", type=NON_NEGATIVE, default=0.5)
@click.option("--dropout", help="Dropout probability", metavar="FLOAT", type=PROBABILITY, default=0.13)
@click.option("--augment", help="Augmentation probability, 0 = off", type=PROBABILITY, default=0.12)
@click.option("--xflip", help="Add mirrored copies of the images", type=bool, default=False)
@click.option("--fp16", help="Half-precision network core", type=bool, default=False)
@click.option("--ls", help="Loss scaling", metavar="FLOAT", type=POSITIVE, default=1.0)
@click.option("--bench", help="cuDNN benchmarking", type=bool, default=True)
@click.option("--cache", help="Keep decoded images in memory", type=bool, default=True)
@click.option("--workers", help="Data loader processes", metavar="INT", type=POSITIVE_INT, default=1)
@click.option("--desc", help="Text at the end of the run folder's name", metavar="TEXT")
@click.option("--nosubdir", help="Write into the output folder itself", is_flag=True)
@click.option("--tick", help="Thousand images between status lines", metavar="KIMG", type=POSITIVE_INT, default=50)
@click.option("--snap", help="Ticks between snapshots", metavar="TICKS", type=POSITIVE_INT, default=50)
@click.option("--dump", help="Ticks between training states", metavar="TICKS", type=POSITIVE_INT, default=500)
@click.option("--seed", help="Random seed  [default: random]", metavar="INT", type=int)
@click.option("--transfer", help="Start from the weights of a snapshot", metavar="FILE|URL", type=INPUT_PATH_OR_URL)
@click.option(
    "--resume",
    help="Go on from a training state; auto: the newest in the run's folder",
    metavar="PT|auto",
    type=INPUT_PATH,
)
@click.option("--lr-rampup", help="Learning rate ramp, in million images  [default: 10]", type=NON_NEGATIVE)
@click.option("--snapshot-format", type=click.Choice(["safetensors", "pkl"]), default="safetensors", show_default=True)
@click.option("--preview", help="Samples drawn beside each snapshot, 0 = none", type=NON_NEGATIVE_INT, default=32)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("-n", "--dry-run", help="Print the settings and stop", is_flag=True)
def command(**opts: Any) -> None:
    """Train a network with the recipe of Karras et al. 2022.

    \b
    Example: the paper's class-conditional CIFAR-10 model on 8 GPUs
    torchrun --standalone --nproc_per_node=8 -m edm_fast train \\
        --outdir=runs --data=cifar10-32x32.zip --cond=1 --arch=ddpmpp
    """
    device = resolve_device(opts["device"])
    distributed.init(device)
    settings, name = training_settings(opts)
    auto = opts["resume"] == "auto"
    run_dir = distributed.broadcast_object(pick_run_dir(opts["outdir"], name, opts["nosubdir"], auto))
    if not opts["dry_run"]:
        launch(settings, run_dir, auto, device)
    elif distributed.rank() == 0:
        print_settings(settings, run_dir)
        print("Dry run; stopping.")
    distributed.shutdown()  # not after an error: other ranks may be waiting in a collective, and torchrun ends them
