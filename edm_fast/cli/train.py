"""edm-fast train: options to training settings, a run folder, and the training loop."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from edm_fast import distributed
from edm_fast.cli import _edm2_training
from edm_fast.cli._console_log import console_log
from edm_fast.cli._device import resolve_device
from edm_fast.cli._options import (
    BATCH,
    DURATION,
    FINITE,
    IMAGES,
    INPUT_PATH,
    INPUT_PATH_OR_URL,
    INT_LIST,
    NON_NEGATIVE,
    NON_NEGATIVE_INT,
    OUTPUT_PATH,
    POSITIVE,
    POSITIVE_INT,
    PROBABILITY,
    Count,
)
from edm_fast.cli._run_folder import pick_run_dir, run_name
from edm_fast.cli._snapshot_quality import snapshot_quality
from edm_fast.cli._widths import WIDTHS
from edm_fast.errors import UserError, UserOSError
from edm_fast.files import atomic_write
from edm_fast.networks import ARCHITECTURES
from edm_fast.networks.presets import EDM2_TRAININGS
from edm_fast.training import (
    AUGMENT,
    AUGMENT_LABELS,
    PRECISIONS,
    ImageFolderDataset,
    Interrupted,
    Precision,
    Stopped,
    check_free,
    clear_leftovers,
    deal_batch,
    describe_network,
    forecast,
    latest_state,
    run_results,
    training_loop,
)

PRECONDS = {"vp": ("VPPrecond", "VPLoss"), "ve": ("VEPrecond", "VELoss"), "edm": ("EDMPrecond", "EDMLoss")}


def dataset_settings(opts: dict[str, Any]) -> tuple[dict[str, Any], ImageFolderDataset]:
    """The data set's keywords, with size and resolution as found, and the data set."""
    kwargs: dict[str, Any] = {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": opts["data"],
        "use_labels": opts["cond"],
        "xflip": opts["xflip"],
        "cache": opts["cache"],
        **({"arrays": True} if opts["arch"] == "edm2" else {}),
    }
    dataset = ImageFolderDataset(**{key: value for key, value in kwargs.items() if key != "class_name"})
    if opts["cond"] and not dataset.has_labels:
        raise UserError(f"--cond=1 needs labels; {opts['data']} has none (expected a dataset.json with labels)")
    return {**kwargs, "resolution": dataset.resolution, "max_size": len(dataset)}, dataset


def network_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """The network's keywords: the architecture, then what the options change."""
    kwargs = dict(ARCHITECTURES.get(opts["arch"], {}))
    precond = f"networks.{PRECONDS[opts['precond']][0]}" if kwargs else "networks_edm2.Precond"
    kwargs["class_name"] = f"training.{precond}"
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
    match = re.fullmatch(r"training-state-(\d+)\.(safetensors|pt)", os.path.basename(opts["resume"]))
    if match is None or not os.path.isfile(opts["resume"]):
        raise UserError(
            f"--resume={opts['resume']} is not an existing file named training-state-<digits>.safetensors or .pt"
        )
    snapshot = os.path.join(os.path.dirname(opts["resume"]), f"network-snapshot-{match[1]}.pkl")
    beside = {"resume_pkl": snapshot, "resume_kimg": int(match[1])}  # states of EDM2 have the averages inside
    return {**(beside if opts["arch"] != "edm2" else {}), "resume_state_dump": opts["resume"]}


def kimg(million_images: float) -> float:
    """Thousands of images, to the image; an integer where it is whole, as published. A Count is one of images."""
    images = million_images if isinstance(million_images, Count) else round(million_images * 1e6)
    return images // 1000 if images % 1000 == 0 else images / 1000


def training_settings(opts: dict[str, Any]) -> tuple[dict[str, Any], ImageFolderDataset]:
    """Keywords of the training loop in the published layout, and the data set."""
    dataset_kwargs, dataset = dataset_settings(opts)
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
        "total_kimg": max(kimg(opts["duration"]), 1),
        "ema_halflife_kimg": kimg(opts["ema"]),
        "batch_size": opts["batch"],
        "batch_gpu": opts["batch_gpu"] or None,
        "loss_scaling": opts["ls"],
        "cudnn_benchmark": opts["bench"],
        "kimg_per_tick": opts["tick"],
        "snapshot_ticks": opts["snap"] or None,
        "state_dump_ticks": opts["dump"] or None,
        "seed": common_seed(opts["seed"]),
    }
    if opts["arch"] == "edm2":
        settings = {**settings, **_edm2_training.changes(opts)}
        del settings["ema_halflife_kimg"]
    settings |= resume_settings(opts)
    settings |= own_settings(opts)
    return settings, dataset


def own_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """Settings the published program does not have, where they differ from the loop's defaults."""
    settings: dict[str, Any] = {}
    if opts["lr_rampup"] is not None:
        settings["lr_rampup_kimg"] = opts["lr_rampup"] * 1000
    if opts["snapshot_format"] != "safetensors":
        settings["snapshot_format"] = opts["snapshot_format"]
    if opts["preview"] != 32:
        settings["preview_images"] = opts["preview"]
    if opts["dump_minutes"] != 10:
        settings["dump_minutes"] = opts["dump_minutes"]
    if opts["precision"] != "fp32":
        settings["precision"] = opts["precision"]
    if opts["log_to"] is not None:
        settings["log_to"] = opts["log_to"]
    if opts["keep_states"] != 2:
        settings["keep_states"] = opts["keep_states"]
    return settings


def common_seed(seed: int | None) -> int:
    """The seed given, or a random one that all ranks share."""
    if seed is None:
        seed = int(torch.seed() % (1 << 31))
    return distributed.broadcast_object(seed)


def length_line(settings: dict[str, Any], duration: float) -> str:
    """How much is trained, in whole steps; duration: million images asked for."""
    total, batch = settings["total_kimg"], settings["batch_size"]
    steps = math.ceil(round(total * 1000) / batch)
    line = f"{total:g} kimg in {steps:,} step{'s' * (steps != 1)} of {batch:,} images"
    notes = [] if steps * batch == round(total * 1000) else [f"whole steps: {steps * batch / 1000:g} kimg"]
    notes += [] if kimg(duration) >= 1 else [f"the shortest length; --duration={duration:g} asks for less"]
    return f"{line} ({'; '.join(notes)})" if notes else line


def summary(settings: dict[str, Any], data: str, expected: list[str], run_dir: str, duration: float) -> None:
    """Print what the run will do; everything else is in training_options.json. data: about the data set."""
    snapshots, dumps = (settings[name] for name in ("snapshot_ticks", "state_dump_ticks"))
    minutes = settings.get("dump_minutes", 10)
    wanted = [f"every {dumps} ticks"] * bool(dumps) + [f"every {minutes:g} minutes"] * bool(minutes)
    states = f"a training state {' and '.join(wanted)}" if wanted else "no training states"
    states = f"a snapshot every {snapshots}, {states}" if snapshots else f"no snapshots, {states}"
    print(f"Run folder: {run_dir} ({distributed.world_size()} process(es); settings: training_options.json)")
    print(f"Data: {settings['dataset_kwargs']['path']}: {data}")
    print(f"Length: {length_line(settings, duration)}")
    print(f"Ticks: every {settings['kimg_per_tick']} kimg; {states}")
    print(*expected, "", sep="\n", flush=True)


def prepare_auto(run_dir: str) -> dict[str, Any]:
    """--resume auto: settings that name the newest whole state in run_dir; what a killed process left is cleared."""
    clear_leftovers(run_dir)
    found = latest_state(run_dir)
    if found is None:
        if not run_results(run_dir):
            print("Nothing to resume: starting anew", flush=True)
        return {}
    path, seed = found
    return {"resume_state_dump": str(path), "seed": seed}


def launch(
    settings: dict[str, Any], tell: Callable[[], None], run_dir: str, auto: bool, device: torch.device, measure: Any
) -> None:
    """Make the run folder, find the dump to go on from, and train; tell: prints what will be done."""
    main = distributed.rank() == 0
    if not auto:
        check_free(run_dir, settings.get("resume_state_dump"))
    with console_log(Path(run_dir)) if main else contextlib.nullcontext():
        if auto:
            settings |= distributed.broadcast_object(prepare_auto(run_dir) if main else None)
            check_free(run_dir, settings.get("resume_state_dump"))
        if main:
            try:
                with atomic_write(Path(run_dir) / "training_options.json", "w", kind="json") as file:
                    json.dump({**settings, "run_dir": run_dir}, file, indent=2)
            except OSError as error:
                raise UserOSError(f"cannot write to {run_dir}: {error.strerror or error}") from error
            tell()
        distributed.barrier()
        training_loop(run_dir=run_dir, device=device, measure=measure, **settings)


@click.command(context_settings={"show_default": True})
@click.option("--outdir", help="Where the results go", metavar="DIR", type=OUTPUT_PATH, required=True)
@click.option("--data", help="Data set", metavar="ZIP|DIR", type=INPUT_PATH, required=True)
@click.option("--cond", help="Class-conditional, by the labels of the data set", type=bool, default=False)
@click.option("--arch", help="Architecture", type=click.Choice([*ARCHITECTURES, "edm2"]), default="ddpmpp")
@click.option("--precond", help="Preconditioning and loss", type=click.Choice(list(PRECONDS)), default="edm")
@click.option(
    "--preset",
    help="With --arch=edm2: published settings, which options change",
    type=click.Choice(EDM2_TRAININGS),
    metavar="NAME",
    default="edm2-img512-s",
)
@click.option("--decay", help="Batches at full rate, with --arch=edm2  [default: by preset]", type=NON_NEGATIVE)
@click.option("--P_mean", "P_mean", help="Mean of ln sigma, with --arch=edm2  [default: by preset]", type=FINITE)
@click.option("--P_std", "P_std", help="Its deviation, with --arch=edm2  [default: by preset]", type=POSITIVE)
@click.option(
    "--ema-std", help="Widths of the averages, with --arch=edm2", metavar="LIST", type=WIDTHS, default="0.05,0.1"
)
@click.option("--status", help="--tick as published, with --arch=edm2  [default: 128Ki]", metavar="IMAGES", type=IMAGES)
@click.option("--snapshot", help="--snap, in the same way  [default: 8Mi]", metavar="IMAGES", type=IMAGES)
@click.option("--checkpoint", help="--dump, in the same way  [default: 128Mi]", metavar="IMAGES", type=IMAGES)
@click.option("--duration", help="Length, in million images", metavar="MIMG", type=DURATION, default=200.0)
@click.option("--batch", help="Batch size of all processes together", metavar="INT", type=BATCH, default=512)
@click.option(
    "--batch-gpu", help="Largest batch of one backward pass, 0 = no limit  [default: 0]", type=NON_NEGATIVE_INT
)
@click.option(
    "--cbase", "--channels", help="Channel multiplier  [default: by architecture]", metavar="INT", type=POSITIVE_INT
)
@click.option("--cres", help="Channels per resolution, e.g. 1,2,2  [default: by architecture]", type=INT_LIST)
@click.option("--num-blocks", help="Residual blocks per resolution  [default: by architecture]", type=POSITIVE_INT)
@click.option("--lr", help="Learning rate", metavar="FLOAT", type=POSITIVE, default=1e-3)
@click.option("--ema", help="Half-life of the weight average, in million images", type=NON_NEGATIVE, default=0.5)
@click.option("--dropout", help="Dropout probability", metavar="FLOAT", type=PROBABILITY, default=0.13)
@click.option("--augment", help="Augmentation probability, 0 = off", type=PROBABILITY, default=0.12)
@click.option("--xflip", help="Add mirrored copies of the images", type=bool, default=False)
@click.option("--fp16", help="Half-precision network core", type=bool, default=False)
@click.option("--precision", help="Of products in training", type=click.Choice(PRECISIONS), default="fp32")
@click.option("--ls", help="Loss scaling", metavar="FLOAT", type=POSITIVE, default=1.0)
@click.option("--bench", help="cuDNN benchmarking", type=bool, default=True)
@click.option("--cache", help="Keep decoded images in memory", type=bool, default=True)
@click.option("--workers", help="Data loader processes, 0 = none", metavar="INT", type=NON_NEGATIVE_INT, default=1)
@click.option("--desc", help="Text at the end of the run folder's name  [default: none]", metavar="TEXT")
@click.option(
    "--nosubdir", help="Write into the output folder itself  [default: off]", is_flag=True, show_default=False
)
@click.option("--tick", help="Thousand images between status lines", metavar="KIMG", type=POSITIVE_INT, default=50)
@click.option("--snap", help="Ticks between snapshots", metavar="TICKS", type=POSITIVE_INT, default=50)
@click.option("--dump", help="Ticks between training states", metavar="TICKS", type=POSITIVE_INT, default=500)
@click.option(
    "--dump-minutes", help="Minutes between states of which the newest stay, 0 = none", type=NON_NEGATIVE, default=10
)
@click.option("--keep-states", help="How many of those, and of states on signals, stay", type=POSITIVE_INT, default=2)
@click.option("--seed", help="Random seed  [default: random]", metavar="INT", type=click.IntRange(0, (1 << 32) - 1))
@click.option(
    "--transfer",
    help="Start from the weights of a snapshot  [default: none]",
    metavar="FILE|URL",
    type=INPUT_PATH_OR_URL,
)
@click.option(
    "--resume",
    help="Go on from a training state; auto: the newest of this run  [default: none]",
    metavar="FILE|auto",
    type=INPUT_PATH,
)
@click.option("--lr-rampup", help="Learning rate ramp, in million images  [default: 10]", type=NON_NEGATIVE)
@click.option(
    "--snapshot-format", help="Format of snapshots", type=click.Choice(["safetensors", "pkl"]), default="safetensors"
)
@click.option("--preview", help="Samples drawn beside each snapshot, 0 = none", type=NON_NEGATIVE_INT, default=32)
@click.option("--quality", help="Samples measured at each snapshot, 0 = none", type=NON_NEGATIVE_INT, default=0)
@click.option("--log-to", help="Module like wandb that gets the numbers  [default: none]", metavar="MODULE")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N")
@click.option("-n", "--dry-run", help="Print the settings and stop  [default: off]", is_flag=True, show_default=False)
def command(**opts: Any) -> None:
    """Train a network with the recipe of Karras et al. 2022, or with --arch=edm2 that of Karras et al. 2024.

    EDM2 counts in 1024 images (--tick) and 2^20 images (--duration), so that names of snapshots tell their time;
    lengths may also be typed as published, such as --duration=512Mi, --status=64Ki. Where they are not typed --batch,
    --lr, --dropout, --duration and --cbase are those of --preset, and --cond=1, --fp16=1, --seed=0, --tick=128,
    --snap=64, --dump=1024. Each snapshot has a file for each width of --ema-std; edm-fast ema reconstruct makes others.

    SIGTERM, SIGUSR1 and SIGHUP, to any process, write a training state after the next step and end all processes with
    exit code 0; so does Ctrl-C, with 130 (a second one stops at once). --resume=auto with the same options goes on to
    the same bits. Bad input ends with exit code 2. Results of another run are never overwritten.

    \b
    Example: the paper's class-conditional CIFAR-10 model on 8 GPUs
    torchrun --standalone --nproc_per_node=8 -m edm_fast train \\
        --outdir=runs --data=cifar10-32x32.zip --cond=1 --arch=ddpmpp
    """
    source = click.get_current_context().get_parameter_source
    typed = {name for name in opts if source(name) is not ParameterSource.DEFAULT}
    opts = _edm2_training.checked(opts, typed)
    device = resolve_device(opts["device"])
    Precision(opts["precision"], device, opts["fp16"])  # complains before anything is read
    distributed.init(device)
    settings, dataset = training_settings(opts)
    deal_batch(settings["batch_size"], settings["batch_gpu"])
    halvings = len(settings["network_kwargs"]["channel_mult"]) - 1
    # one rank reads all headers; if that ends in an error, torchrun ends the others
    found = distributed.broadcast_object(dataset.survey(halvings) if distributed.rank() == 0 else "")
    network = describe_network(settings["network_kwargs"], dataset)
    run_dir = pick_run_dir(opts["outdir"], run_name(opts, dataset), opts["nosubdir"], opts["resume"] == "auto")
    run_dir = distributed.broadcast_object(run_dir)
    expected = forecast(settings, dataset, run_dir) if distributed.rank() == 0 else []
    tell = functools.partial(summary, settings, found, expected, run_dir, opts["duration"])
    if opts["dry_run"]:
        if distributed.rank() == 0:
            print("Settings:")
            print(json.dumps({**settings, "run_dir": run_dir}, indent=2))
            print(f"Network: {network}")
            tell()
            print("Dry run; stopping.")
    else:
        measured = opts["quality"] and distributed.rank() == 0
        measure = snapshot_quality(opts["quality"], opts["data"], device) if measured else None
        try:
            launch(settings, tell, run_dir, opts["resume"] == "auto", device, measure)
        except (Stopped, Interrupted):  # on all ranks
            distributed.shutdown()
            raise
    distributed.shutdown()  # not after an error: other ranks may be waiting in a collective, and torchrun ends them
