"""edm-fast generate: images from a network, one PNG per seed, on one process or many (torchrun)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
import tqdm
from click.core import ParameterSource

from edm_fast import __version__, distributed
from edm_fast.checkpoint import DEMO, add_weights
from edm_fast.cli import _edm2_presets, _sampler
from edm_fast.cli import _options as opt
from edm_fast.cli._device import named_device, own_gpu, resolve_device
from edm_fast.cli._image_files import FORMATS, ImageFiles
from edm_fast.cli._networks import PRECISIONS, load_network, precision_that_runs, prepared, way_to_draw
from edm_fast.cli._outputs import naming
from edm_fast.cli._overviews import (
    KINDS,
    Trajectory,
    check_overviews,
    classes,
    expect_overviews,
    folders,
    write_overviews,
)
from edm_fast.cli._ranks import on_first_rank, shard_option, wait_for_others
from edm_fast.cli._sampler import sampler_for
from edm_fast.diffusion.schedule import DISCRETIZATIONS, SCALINGS, SCHEDULES
from edm_fast.errors import UserError, count, some
from edm_fast.networks import Precond
from edm_fast.sampling import Solver, check_class, generate
from edm_fast.sampling.levels import LEVELS
from edm_fast.sampling.solvers import registry


@click.command()
@click.option(
    "--network",
    "--net",
    "network_pkl",
    metavar="PATH|URL",
    type=opt.INPUT_PATH_OR_URL,
    help="Checkpoint.  [default: the demo model inside]",
)
@click.option(
    "--preset",
    metavar="NAME",
    type=opt.Parsed(_edm2_presets.parse_preset),
    help="Published EDM2 networks with their guidance, such as edm2-img64-s-fid, to download.  [default: none]",
)
@click.option("--outdir", metavar="DIR", type=opt.OUTPUT_PATH, required=True, help="Where to write the images.")
@click.option("--seeds", metavar="LIST", type=opt.INT_LIST, default="0-63", show_default=True, help="As in 1,2,5-10.")
@click.option("--subdirs", is_flag=True, help="Make a folder for each thousand seeds.")
@click.option("--class", "class_idx", metavar="INT", type=opt.NON_NEGATIVE_INT, help="Class.  [default: by seed]")
@click.option(
    "--batch",
    "max_batch_size",
    metavar="INT",
    type=opt.POSITIVE_INT,
    default=64,
    show_default=True,
    help="Most at a time.",
)
@click.option(
    "--steps",
    "num_steps",
    metavar="INT",
    type=opt.POSITIVE_INT,
    default=18,
    help="Of the sampler.  [default: 18; 32 for EDM2 networks]",
)
@click.option("--sigma_min", metavar="FLOAT", type=opt.POSITIVE, help="Lowest noise level.  [default: by sampler]")
@click.option("--sigma_max", metavar="FLOAT", type=opt.POSITIVE, help="Highest noise level.  [default: by sampler]")
@click.option(
    "--rho",
    metavar="FLOAT",
    type=opt.POSITIVE,
    default=7,
    help="Of the levels.  [default: 7; time_uniform 2, polyexponential 1]",
)
@click.option(
    "--S_churn", "S_churn", metavar="FLOAT", type=opt.NON_NEGATIVE, default=0, show_default=True, help="Fresh noise."
)
@click.option(
    "--S_min", "S_min", metavar="FLOAT", type=opt.NON_NEGATIVE, default=0, show_default=True, help="From this level."
)
@click.option(
    "--S_max", "S_max", metavar="FLOAT", type=opt.NON_NEGATIVE_OR_INF, default="inf", show_default=True, help="To this."
)
@click.option("--S_noise", "S_noise", metavar="FLOAT", type=opt.FINITE, default=1, show_default=True, help="Its scale.")
@click.option(
    "--solver",
    metavar="NAME|FILE.json",
    type=opt.Parsed(_sampler.parse_solver),
    help=f"{', '.join(sorted(registry()))}; or levels and weights in a file.  [default: heun]",
)
@click.option(
    "--order", metavar="INT", type=opt.POSITIVE_INT, help="Of the solver, if it has several.  [default: its own]"
)
@click.option("--nfe", metavar="INT", type=opt.POSITIVE_INT, help="Evaluations per image.  [default: by --steps]")
@click.option(
    "--levels",
    metavar="NAME|LIST",
    type=opt.Parsed(_sampler.parse_levels),
    help=f"Noise levels: {', '.join(LEVELS)}, or numbers such as 80,10,1,0.  [default: karras]",
)
@click.option(
    "--sampler",
    "sampler_file",
    metavar="FILE",
    type=opt.INPUT_PATH,
    help="Solver, levels and precision of edm-fast tune; demo: that of the demo model.  [default: none]",
)
@click.option("--guidance", metavar="FLOAT", type=opt.FINITE, help="Weight of guidance.  [default: 1, none]")
@click.option(
    "--gnet",
    metavar="PATH|URL",
    type=opt.INPUT_PATH_OR_URL,
    help="Network to guide away from.  [default: the same, without class]",
)
@click.option(
    "--guidance-interval",
    metavar="LO,HI",
    type=opt.Parsed(_sampler.parse_interval),
    help="Guide steps from levels in (LO, HI].  [default: all]",
)
@click.option(
    "--disc",
    "discretization",
    type=click.Choice(DISCRETIZATIONS),
    help="Levels of the ablation sampler.  [default: edm]",
)
@click.option("--schedule", type=click.Choice(SCHEDULES), help="Its sigma(t).  [default: linear]")
@click.option("--scaling", type=click.Choice(SCALINGS), help="Its s(t).  [default: none]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    help="Of the sampler's state.  [default: float64; float32 for EDM2 networks]",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="[default: fp32 on CPUs, as stored on GPUs]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--grid", metavar="FILE.png", type=opt.OUTPUT_PATH, help="Also write all images as one picture.  [default: none]"
)
@click.option(
    "--html",
    metavar="FILE.html",
    type=opt.OUTPUT_PATH,
    help="Also write a page of all images with their seeds and settings.  [default: none]",
)
@click.option(
    "--trajectory",
    metavar="FILE.gif",
    type=opt.OUTPUT_PATH,
    help="Also write the denoised images after each step, as an animation.  [default: none]",
)
@click.option("--skip-existing", is_flag=True, help="Continue a stopped run: keep the images it has finished.")
@shard_option("Draw the share I = 0 to N-1 alone, without the others")
@click.option("--check", is_flag=True, help="Draw nothing: say which images are missing, wrong or foreign.")
@click.option(
    "--format",
    type=click.Choice([*FORMATS]),
    default="png",
    show_default=True,
    help="A file for each image, or archives of a thousand.",
)
def command(**options: Any) -> None:
    """Draw one image per seed and save it as DIR/000000.png and so on.

    An image depends on its seed alone: another batch, or more processes, change a pixel by one level of 255 at most
    (float32 sums may be taken in another order). On CPUs the network is accelerated: its convolutions are timed once,
    and the cache folder (EDM_FAST_CACHE_DIR) keeps which way was fastest. Without that file a later run may choose, and
    round, otherwise. On GPUs it is accelerated if --precision is given. tf32 and fp16 run on GPUs alone.

    --skip-existing keeps what is there and draws each batch that lacks an image again, so that the missing ones get the
    same bytes. --network=demo names the model inside.

    --shard=I/N is for many processes that know nothing of each other, each for I of 0 to N-1, at once or in turn: each
    draws a run of the batches that one process would draw, to the same bytes. --shard without I/N takes them from the
    tasks of a Slurm array, srun, mpirun or torchrun. Afterwards the same command with --check in place of --shard says
    what is missing, wrong (damaged, or made otherwise) or foreign, and exits with 1 if anything is.

    --format=tar writes archives as webdataset reads them, each class as 000042.cls beside 000042.png; zip writes data
    sets for edm-fast train. An archive is whole or not there.

    --sampler takes what edm-fast tune has written for this network, says how far its images are from the converged
    solution, and goes with no option that decides on the sampler or on guidance.

    \b
    edm-fast generate --outdir=out --grid=out/grid.png
    torchrun --standalone --nproc_per_node=2 -m edm_fast generate --network=model.pkl --outdir=out
    """
    source = click.get_current_context().get_parameter_source
    options["explicit"] = {name for name in options if source(name) is not ParameterSource.DEFAULT}
    options = check_options(options)
    if options["check"]:
        sys.exit(not check_images(options))
    alone = bool(options["shard"][2])
    device = resolve_device(options["device"], group=not alone)
    if alone:
        device = own_gpu(device, options["device"])
        click.echo("shard {} of {} ({})".format(*options["shard"]))
    else:
        distributed.init(device)
    run(device, options)
    distributed.shutdown()


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with those of --preset. UserError for what can be told wrong before anything is loaded."""
    if options["gnet"] is not None and options["guidance"] is None and options["preset"] is None:
        click.echo("note: --gnet without --guidance, the weight, is of no effect", err=True)
    _edm2_presets.expect_pixels(options["preset"])
    options = _edm2_presets.settled(options)
    if not options["seeds"]:
        raise UserError("--seeds is an empty list; expected integers or ranges such as 0-63, the lower end first")
    low, high = options["sigma_min"], options["sigma_max"]
    if low is not None and high is not None and low >= high:
        raise UserError(f"--sigma_min {low:g} is not below --sigma_max {high:g}")
    _sampler.check_guidance(options)
    options["tuned"] = _sampler.tuned_for(options)
    sampler_for(options)
    options["shard"] = options["shard"] or (0, 1, "")
    if options["shard"][1] > 1:
        for name in (name for name in KINDS if options[name] is not None):
            raise UserError(f"--{name} shows all images; expected no --shard, but --skip-existing when all are there")
    check_overviews(options)
    image_files(options)
    return options


def fingerprint(net: torch.nn.Module, gnet: Any, device: torch.device, options: dict[str, Any], solver: Solver) -> str:
    """Names the settings that decide an image besides its seed: networks, sampler, guidance, class, way to draw, kind
    of device.

    Stored in every PNG, so that --skip-existing keeps nothing made otherwise.
    """
    digest = hashlib.sha256()
    for each in (net, *([] if gnet is None else [gnet])):
        add_weights(digest, each)
    sampler, kwargs = sampler_for(options, net)
    settings = {
        "network": [type(net).__name__, getattr(net, "init_kwargs", None)],
        "sampler": [sampler.__name__, repr(solver) if _sampler.is_file(options["solver"]) else kwargs],
        "class": options["class_idx"],
        "way": way_to_draw(options["precision"], device),
        "device": device.type,
    }
    if options["dtype"] is not None:
        settings["dtype"] = options["dtype"]
    if options["guidance"] is not None:
        network = None if gnet is None else [type(gnet).__name__, getattr(gnet, "init_kwargs", None)]
        settings["guidance"] = [options["guidance"], options["guidance_interval"], network]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def run(device: torch.device, options: dict[str, Any]) -> None:
    """The whole command, on each rank, or for one shard."""
    options["precision"] = precision_on(device, options)
    way = way_to_draw(options["precision"], device)
    net, gnet, solver = load(device, options)
    guidance = _sampler.guidance_for(options, net, gnet and prepared(gnet, way))
    if guidance is not None:
        guidance.check(net)
    files = image_files(options)
    seeds = files.share(options["max_batch_size"], *options["shard"][:2])
    mark = on_first_rank(lambda: fingerprint(net, gnet, device, options, solver))
    finished = on_first_rank(lambda: prepare_outdir(files, seeds, mark, options))
    own, place = {*seeds}, {"rank": distributed.rank(), "world": distributed.world_size()}
    if files.archives:  # the published way to share batches among ranks would cut them into parts
        own, place = own & {*files.share(options["max_batch_size"], place["rank"], place["world"])}, {}
    trajectory = None if options["trajectory"] is None else Trajectory()
    labels = functools.partial(classes, net, class_idx=options["class_idx"], device=device)
    start = time.perf_counter()
    images = generate(
        prepared(net, way),
        files.seeds,
        options["class_idx"],
        batch=options["max_batch_size"],
        device=device,
        solver=solver,
        guidance=guidance,
        callback=trajectory,
        finished={*files.seeds} - (own - finished),
        **place,
    )
    files.write(tqdm.tqdm(images, unit="img", disable=distributed.rank() != 0), mark, labels)
    wait_for_others()
    cost = _sampler.evaluations(solver, guidance)
    line = report(len(seeds) - len(finished), len(finished), time.perf_counter() - start, cost)
    distributed.print0(f"{line}: {options['outdir']}{os.sep}")
    page = {"note": line, **page_of(options, net, way, device)}
    on_first_rank(lambda: write_overviews(options, files.contents, labels, trajectory, page))


def precision_on(device: torch.device, options: dict[str, Any]) -> str | None:
    """That of the command line; with a sampler file its own, if it runs there."""
    tuned = options["tuned"]
    return options["precision"] if tuned is None else precision_that_runs(tuned.precision, device)


def load(device: torch.device, options: dict[str, Any]) -> tuple[Any, Any, Solver]:
    """(network, the one of --gnet or None, solver). UserError for options that do not go with them."""
    net = load_network(device, options["network_pkl"])
    tuned = options["tuned"]
    if tuned is not None:
        on_first_rank(lambda: tuned.check(net))
        distributed.print0(tuned.describe())
    check_channels(net)
    check_class(net, options["class_idx"])
    solver = _sampler.solver_for(options, net)  # complains before anything is written
    return net, None if options["gnet"] is None else load_network(device, options["gnet"]), solver


def image_files(options: dict[str, Any]) -> ImageFiles:
    return ImageFiles(Path(options["outdir"]), options["seeds"], options["format"], options["subdirs"])


def check_images(options: dict[str, Any]) -> bool:
    """Tell which images are missing, wrong or foreign; whether none is. Draws nothing, so it needs no GPU."""
    net, gnet, solver = load(torch.device("cpu"), options)
    marks, refused = set(), None
    for kind in ("cpu", "cuda") if options["device"] == "auto" else [options["device"]]:
        device = named_device(kind)
        try:
            settings = {**options, "precision": precision_on(device, options)}
            marks.add(fingerprint(net, gnet, device, settings, solver))
        except UserError as error:  # a precision of other devices
            refused = error
    if refused is not None and not marks:
        raise refused
    files = image_files(options)
    seeds = files.share(options["max_batch_size"], *options["shard"][:2])
    faults = files.faults(seeds, marks)
    for what, found in (("missing", faults.missing), ("wrong", faults.wrong)):
        if found:
            click.echo(f"{what}: {len(found)} of {count(len(seeds), 'seed')}: {opt.int_list_text(found)}")
    if faults.foreign:
        click.echo(f"foreign: {count(len(faults.foreign), 'image')}: {some(faults.foreign, 10)}")
    if any(faults):
        return False
    click.echo(f"{count(len(seeds), 'image')}, none missing, wrong or foreign: {options['outdir']}{os.sep}")
    return True


def check_channels(net: Any) -> None:
    if int(net.img_channels) not in (1, 3):
        latents = " (latents need the decoder they were made with)" if isinstance(net, Precond) else ""
        raise UserError(f"the network makes images of {net.img_channels} channels{latents}; a PNG takes 1 or 3")


def prepare_outdir(files: ImageFiles, seeds: Sequence[int], mark: str, options: dict[str, Any]) -> set[int]:
    """Make sure that files can be written; the seeds whose images are there already and may be kept."""
    for folder in (files.outdir, *folders(options)):
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    finished, replaced = files.prepare(seeds, mark, options["skip_existing"])
    if replaced:
        click.echo(f"note: {count(replaced, files.format.noun)} in {files.outdir} will be replaced")
    expect_overviews(options, [*map(str, files.paths)])
    return finished


def report(made: int, kept: int, seconds: float, cost: str) -> str:
    rate = f"{made / seconds:.2f} images/s" if seconds > 0 else ""
    return f"{count(made, 'image')} in {seconds:.1f} s ({rate}), {cost}" + (
        f", {kept} kept from before" if kept else ""
    )


def page_of(options: dict[str, Any], net: Any, way: str, device: torch.device) -> dict[str, Any]:
    """Title and settings of the contact sheet."""
    network = options["network_pkl"] or DEMO
    sampler, kwargs = sampler_for(options, net)
    names = {
        "class_idx": "class",
        "guidance": "guidance",
        "gnet": "guided by",
        "guidance_interval": "guidance interval",
    }
    names["max_batch_size"] = "batch"
    chosen = {text: options[name] for name, text in names.items() if options[name] is not None}
    settings = {"network": network, "sampler": sampler.__name__, **kwargs, **chosen, "network runs": way}
    settings |= {"device": str(device), "edm-fast": __version__, "torch": torch.__version__}
    return {"title": f"{count(len({*options['seeds']}), 'image')} of {os.path.basename(network)}", "settings": settings}
