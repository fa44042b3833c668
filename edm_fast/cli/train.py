"""edm-fast train: options to training settings, a run folder, and the training loop."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from edm_fast import distributed
from edm_fast.cli import _edm2_training
from edm_fast.cli import _options as opt
from edm_fast.cli._console_log import console_log
from edm_fast.cli._device import resolve_device
from edm_fast.cli._options_file import OPTIONS_NAME, START, beginning, with_beginning, write_options
from edm_fast.cli._run_folder import pick_run_dir, run_name
from edm_fast.cli._snapshot_quality import snapshot_quality
from edm_fast.cli._training_file import read_settings
from edm_fast.cli._training_settings import PRECONDS, kimg, open_dataset, training_settings
from edm_fast.cli._widths import WIDTHS
from edm_fast.networks import ARCHITECTURES
from edm_fast.networks.presets import EDM2_TRAININGS
from edm_fast.training import (
    PRECISIONS,
    Interrupted,
    Stopped,
    check_free,
    check_settings,
    clear_leftovers,
    describe_network,
    forecast,
    is_inside,
    latest_state,
    run_results,
    training_loop,
)


def length_line(settings: dict[str, Any], duration: float | None) -> str:
    """How much is trained, in whole steps; duration: million images asked for, if that was typed."""
    total, batch = settings["total_kimg"], settings["batch_size"]
    steps = math.ceil(round(total * 1000) / batch)
    line = f"{total:g} kimg in {steps:,} step{'s' * (steps != 1)} of {batch:,} images"
    notes = [] if steps * batch == round(total * 1000) else [f"whole steps: {steps * batch / 1000:g} kimg"]
    if duration is not None and kimg(duration) < 1:
        notes.append(f"the shortest length; --duration={duration:g} asks for less")
    return f"{line} ({'; '.join(notes)})" if notes else line


def summary(settings: dict[str, Any], data: str, expected: list[str], run_dir: str, duration: float | None) -> None:
    """Print what the run will do; everything else is in its file of options. data: about the data set."""
    snapshots, dumps = (settings[name] for name in ("snapshot_ticks", "state_dump_ticks"))
    minutes = settings.get("dump_minutes", 10)
    wanted = [f"every {dumps} ticks"] * bool(dumps) + [f"every {minutes:g} minutes"] * bool(minutes)
    states = f"a training state {' and '.join(wanted)}" if wanted else "no training states"
    states = f"a snapshot every {snapshots}, {states}" if snapshots else f"no snapshots, {states}"
    print(f"Run folder: {run_dir} ({distributed.world_size()} process(es); settings: {OPTIONS_NAME})")
    print(f"Data: {settings['dataset_kwargs']['path']}: {data}")
    print(f"Length: {length_line(settings, duration)}")
    print(f"Ticks: every {settings['kimg_per_tick']} kimg; {states}")
    print(*expected, "", sep="\n", flush=True)


def prepare_auto(run_dir: str) -> dict[str, Any]:
    """--resume auto: settings that name the newest whole state in run_dir; what a killed process left is cleared.

    A run that ended before its first state begins again from where it began, such as the weights of --transfer.
    """
    clear_leftovers(run_dir)
    found = latest_state(run_dir)
    if found is None:
        if not run_results(run_dir):
            print("Nothing to resume: starting anew", flush=True)
        return {name: value for name, value in (beginning(run_dir) or {}).items() if name in START}
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
        found = distributed.broadcast_object(prepare_auto(run_dir) if main else None) if auto else {}
        settings = {**settings, **found}
        state = settings.get("resume_state_dump")
        if auto:
            check_free(run_dir, state)
        if main:
            goes_on = state is not None and is_inside(state, run_dir)
            write_options(with_beginning(settings, run_dir) if goes_on else settings, run_dir)
            tell()
        distributed.barrier()
        training_loop(run_dir=run_dir, device=device, measure=measure, **settings)


def need_data(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None and ctx.params.get("options") is None:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


@click.command(context_settings={"show_default": True})
@click.option("--outdir", help="Where the results go", metavar="DIR", type=opt.OUTPUT_PATH, required=True)
@click.option(
    "--data", help="Data set  [required without --options]", metavar="ZIP|DIR", type=opt.INPUT_PATH, callback=need_data
)
@click.option(
    "--options",
    help=f"Repeat a run: its {OPTIONS_NAME}, beside which only options that change no weight go  [default: none]",
    metavar="FILE",
    type=opt.INPUT_PATH,
    is_eager=True,
)
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
@click.option("--decay", help="Batches at full rate, with --arch=edm2  [default: by preset]", type=opt.NON_NEGATIVE)
@click.option("--P_mean", "P_mean", help="Mean of ln sigma, with --arch=edm2  [default: by preset]", type=opt.FINITE)
@click.option("--P_std", "P_std", help="Its deviation, with --arch=edm2  [default: by preset]", type=opt.POSITIVE)
@click.option(
    "--ema-std", help="Widths of the averages, with --arch=edm2", metavar="LIST", type=WIDTHS, default="0.05,0.1"
)
@click.option(
    "--status", help="--tick as published, with --arch=edm2  [default: 128Ki]", metavar="IMAGES", type=opt.IMAGES
)
@click.option("--snapshot", help="--snap, in the same way  [default: 8Mi]", metavar="IMAGES", type=opt.IMAGES)
@click.option("--checkpoint", help="--dump, in the same way  [default: 128Mi]", metavar="IMAGES", type=opt.IMAGES)
@click.option("--duration", help="Length, in million images", metavar="MIMG", type=opt.DURATION, default=200.0)
@click.option("--batch", help="Batch size of all processes together", metavar="INT", type=opt.BATCH, default=512)
@click.option(
    "--batch-gpu", help="Largest batch of one backward pass, 0 = no limit  [default: 0]", type=opt.NON_NEGATIVE_INT
)
@click.option(
    "--cbase", "--channels", help="Channel multiplier  [default: by architecture]", metavar="INT", type=opt.POSITIVE_INT
)
@click.option("--cres", help="Channels per resolution, e.g. 1,2,2  [default: by architecture]", type=opt.INT_LIST)
@click.option("--num-blocks", help="Residual blocks per resolution  [default: by architecture]", type=opt.POSITIVE_INT)
@click.option("--lr", help="Learning rate", metavar="FLOAT", type=opt.POSITIVE, default=1e-3)
@click.option("--ema", help="Half-life of the weight average, in million images", type=opt.NON_NEGATIVE, default=0.5)
@click.option("--dropout", help="Dropout probability", metavar="FLOAT", type=opt.PROBABILITY, default=0.13)
@click.option("--augment", help="Augmentation probability, 0 = off", type=opt.PROBABILITY, default=0.12)
@click.option("--xflip", help="Add mirrored copies of the images", type=bool, default=False)
@click.option("--fp16", help="Half-precision network core", type=bool, default=False)
@click.option("--precision", help="Of products in training", type=click.Choice(PRECISIONS), default="fp32")
@click.option("--ls", help="Loss scaling", metavar="FLOAT", type=opt.POSITIVE, default=1.0)
@click.option("--bench", help="cuDNN benchmarking", type=bool, default=True)
@click.option("--cache", help="Keep decoded images in memory", type=bool, default=True)
@click.option("--workers", help="Data loader processes, 0 = none", metavar="INT", type=opt.NON_NEGATIVE_INT, default=1)
@click.option("--desc", help="Text at the end of the run folder's name  [default: none]", metavar="TEXT")
@click.option(
    "--nosubdir", help="Write into the output folder itself  [default: off]", is_flag=True, show_default=False
)
@click.option("--tick", help="Thousand images between status lines", metavar="KIMG", type=opt.POSITIVE_INT, default=50)
@click.option("--snap", help="Ticks between snapshots", metavar="TICKS", type=opt.POSITIVE_INT, default=50)
@click.option("--dump", help="Ticks between training states", metavar="TICKS", type=opt.POSITIVE_INT, default=500)
@click.option(
    "--dump-minutes",
    help="Minutes between states of which the newest stay, 0 = none",
    type=opt.NON_NEGATIVE,
    default=10,
)
@click.option(
    "--keep-states", help="How many of those, and of states on signals, stay", type=opt.POSITIVE_INT, default=2
)
@click.option("--seed", help="Random seed  [default: random]", metavar="INT", type=click.IntRange(0, (1 << 32) - 1))
@click.option(
    "--transfer",
    help="Start from the weights of a snapshot  [default: none]",
    metavar="FILE|URL",
    type=opt.INPUT_PATH_OR_URL,
)
@click.option(
    "--resume",
    help="Go on from a training state; auto: the newest of this run  [default: none]",
    metavar="FILE|auto",
    type=opt.INPUT_PATH,
)
@click.option("--lr-rampup", help="Learning rate ramp, in million images  [default: 10]", type=opt.NON_NEGATIVE)
@click.option(
    "--snapshot-format", help="Format of snapshots", type=click.Choice(["safetensors", "pkl"]), default="safetensors"
)
@click.option("--preview", help="Samples drawn beside each snapshot, 0 = none", type=opt.NON_NEGATIVE_INT, default=32)
@click.option("--quality", help="Samples measured at each snapshot, 0 = none", type=opt.NON_NEGATIVE_INT, default=0)
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
    opts = opts if opts["options"] else _edm2_training.checked(opts, typed)
    device = resolve_device(opts["device"])
    distributed.init(device)
    settings = read_settings(opts, typed) if opts["options"] else training_settings(opts)
    checked = check_settings(device, **settings)
    dataset = open_dataset(settings, opts["options"])
    network = describe_network(settings["network_kwargs"], dataset)
    halvings = len(settings["network_kwargs"]["channel_mult"]) - 1
    # one rank reads all headers; if that ends in an error, torchrun ends the others
    found = distributed.broadcast_object(dataset.survey(halvings) if distributed.rank() == 0 else "")
    name = run_name(settings, dataset, opts["desc"])
    run_dir = pick_run_dir(opts["outdir"], name, opts["nosubdir"], opts["resume"] == "auto")
    run_dir = distributed.broadcast_object(run_dir)
    expected = forecast(checked, dataset, run_dir) if distributed.rank() == 0 else []
    asked = None if opts["options"] else opts["duration"]
    tell = functools.partial(summary, settings, found, expected, run_dir, asked)
    if opts["dry_run"]:
        if distributed.rank() == 0:
            print("Settings:")
            print(json.dumps({**settings, "run_dir": run_dir}, indent=2))
            print(f"Network: {network}")
            tell()
            print("Dry run; stopping.")
    else:
        measured = opts["quality"] and distributed.rank() == 0
        measure = snapshot_quality(opts["quality"], dataset.path, device) if measured else None
        try:
            launch(settings, tell, run_dir, opts["resume"] == "auto", device, measure)
        except (Stopped, Interrupted):  # on all ranks
            distributed.shutdown()
            raise
    distributed.shutdown()  # not after an error: other ranks may be waiting in a collective, and torchrun ends them
