"""edm-fast generate: images from a network, one PNG per seed, on one process or many (torchrun)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
import tqdm
from click.core import ParameterSource

from edm_fast import __version__, distributed
from edm_fast.checkpoint import DEMO, add_weights
from edm_fast.cli import _options as opt
from edm_fast.cli import _sampler
from edm_fast.cli._device import resolve_device
from edm_fast.cli._networks import PRECISIONS, load_network, precision_that_runs, prepared, way_to_draw
from edm_fast.cli._outputs import naming
from edm_fast.cli._overviews import Trajectory, check_overviews, classes, expect_overviews, folders, write_overviews
from edm_fast.cli._ranks import on_first_rank, wait_for_others
from edm_fast.cli._sampler import sampler_for
from edm_fast.diffusion.schedule import DISCRETIZATIONS, SCALINGS, SCHEDULES
from edm_fast.errors import UserError, count
from edm_fast.files import check_output
from edm_fast.networks import Precond
from edm_fast.sampling import Solver, check_class, generate, save_png, to_uint8
from edm_fast.sampling.images import image_name, made_with, read_png
from edm_fast.sampling.levels import LEVELS
from edm_fast.sampling.solvers import registry


@click.command()
@click.option(
    "--network",
    "network_pkl",
    metavar="PATH|URL",
    type=opt.INPUT_PATH_OR_URL,
    help="Checkpoint.  [default: the demo model inside]",
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
def command(**options: Any) -> None:
    """Draw one image per seed and save it as DIR/000000.png and so on.

    An image depends on its seed alone: another batch, or more processes, change a pixel by one level of 255 at most
    (float32 sums may be taken in another order). On CPUs the network is accelerated: its convolutions are timed once,
    and the cache folder (EDM_FAST_CACHE_DIR) keeps which way was fastest. Without that file a later run may choose, and
    round, otherwise. On GPUs it is accelerated if --precision is given. tf32 and fp16 run on GPUs alone.

    --skip-existing draws the missing images alone: whole batches as they would have been, so to the same bytes, the
    rest of batches partly finished in batches of its own. --network=demo names the model inside.

    --sampler takes what edm-fast tune has written for this network, says how far its images are from the converged
    solution, and goes with no option that decides on the sampler or on guidance.

    \b
    edm-fast generate --outdir=out --grid=out/grid.png
    torchrun --standalone --nproc_per_node=2 -m edm_fast generate --network=model.pkl --outdir=out
    """
    source = click.get_current_context().get_parameter_source
    options["explicit"] = {name for name in options if source(name) is not ParameterSource.DEFAULT}
    check_options(options)
    device = resolve_device(options["device"])
    distributed.init(device)
    run(device, options)
    distributed.shutdown()


def check_options(options: dict[str, Any]) -> None:
    """UserError for what can be told wrong before anything is loaded."""
    if not options["seeds"]:
        raise UserError("--seeds is an empty list; expected integers or ranges such as 0-63, the lower end first")
    low, high = options["sigma_min"], options["sigma_max"]
    if low is not None and high is not None and low >= high:
        raise UserError(f"--sigma_min {low:g} is not below --sigma_max {high:g}")
    _sampler.check_guidance(options)
    options["tuned"] = _sampler.tuned_for(options)
    sampler_for(options)
    check_overviews(options)


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
    """The whole command, on each rank."""
    tuned = options["tuned"]
    if tuned is not None:
        options["precision"] = precision_that_runs(tuned.precision, device)
    way = way_to_draw(options["precision"], device)
    net = load_network(device, options["network_pkl"])
    if tuned is not None:
        on_first_rank(lambda: tuned.check(net))
        distributed.print0(tuned.describe())
    check_channels(net)
    check_class(net, options["class_idx"])
    sampler, kwargs = sampler_for(options, net)
    solver = _sampler.solver_for(options, net)  # complains before anything is written
    gnet = None if options["gnet"] is None else load_network(device, options["gnet"])
    guidance = _sampler.guidance_for(options, net, gnet and prepared(gnet, way))
    if guidance is not None:
        guidance.check(net)
    seeds, outdir = options["seeds"], Path(options["outdir"])
    names = {seed: image_name(seed, options["subdirs"]) for seed in seeds}  # in order, each once
    mark = on_first_rank(lambda: fingerprint(net, gnet, device, options, solver))
    finished = on_first_rank(lambda: prepare_outdir(outdir, names, mark, options))
    trajectory = None if options["trajectory"] is None else Trajectory()
    start = time.perf_counter()
    images = generate(
        prepared(net, way),
        [*names],
        options["class_idx"],
        batch=options["max_batch_size"],
        device=device,
        solver=solver,
        guidance=guidance,
        callback=trajectory,
        finished=finished,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    for seed, image in tqdm.tqdm(images, unit="img", disable=distributed.rank() != 0):
        save_image(image, seed, outdir / names[seed], mark)
    wait_for_others()
    cost = _sampler.evaluations(solver, guidance)
    line = report(len(names) - len(finished), len(finished), time.perf_counter() - start, cost)
    distributed.print0(f"{line}: {outdir}{os.sep}")
    files = {seed: outdir / name for seed, name in names.items()}
    page = {"note": line, **page_of(options, sampler, kwargs, way, device)}
    labels = functools.partial(classes, net, [*names], options["class_idx"], device)
    on_first_rank(lambda: write_overviews(options, files, labels, trajectory, page))


def check_channels(net: Any) -> None:
    if int(net.img_channels) not in (1, 3):
        latents = " (latents need the decoder they were made with)" if isinstance(net, Precond) else ""
        raise UserError(f"the network makes images of {net.img_channels} channels{latents}; a PNG takes 1 or 3")


def prepare_outdir(outdir: Path, names: dict[int, str], mark: str, options: dict[str, Any]) -> set[int]:
    """Make sure that files can be written; the seeds whose images are there already and may be kept."""
    for folder in (outdir, *folders(options)):
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    finished = finished_seeds(outdir, names, mark) if options["skip_existing"] else set()
    targets = [outdir / name for seed, name in names.items() if seed not in finished]
    if replaced := sum(check_output(path, "png") for path in targets):
        click.echo(f"note: {count(replaced, 'image')} in {outdir} will be replaced")
    expect_overviews(options, [str(outdir / name) for name in names.values()])
    return finished


def finished_seeds(outdir: Path, names: dict[int, str], mark: str) -> set[int]:
    """Of a stopped run: the seeds whose images are there. UserError for an image made otherwise."""
    finished = set()
    for seed, name in names.items():
        found = made_with(outdir / name)
        if found is not None and found != mark:
            raise UserError(
                f"{outdir / name} was not made by edm-fast generate with these options and this network; "
                "expected another --outdir, or no --skip-existing"
            )
        if found is not None and is_whole(outdir / name):
            finished.add(seed)
    remove_leftovers({(outdir / names[seed]) for seed in names.keys() - finished})
    return finished


def is_whole(path: Path) -> bool:
    """Whether an image can be read; a damaged one is drawn again."""
    try:
        read_png(path)
    except (OSError, SyntaxError, ValueError):  # of Pillow, for as many kinds of damage
        return False
    return True


def remove_leftovers(paths: set[Path]) -> None:
    """Delete the temporary files of a killed run (see files.atomic_write) that were to become `paths`."""
    for folder in {path.parent for path in paths}:
        for leftover in folder.glob(".*.png.*.tmp"):
            if folder / (leftover.name[1:].split(".png.")[0] + ".png") in paths:
                leftover.unlink(missing_ok=True)


def save_image(x: torch.Tensor, seed: int, path: Path, mark: str) -> None:
    """Write the image x (C, R, R) of a seed."""
    if not x.isfinite().all():
        raise UserError(f"seed {seed}: the image is not finite; expected another --precision or sampler options")
    with naming(path):
        save_png(path, to_uint8(x[None])[0], made_with=mark)


def report(made: int, kept: int, seconds: float, cost: str) -> str:
    rate = f"{made / seconds:.2f} images/s" if seconds > 0 else ""
    return f"{count(made, 'image')} in {seconds:.1f} s ({rate}), {cost}" + (
        f", {kept} kept from before" if kept else ""
    )


def page_of(
    options: dict[str, Any], sampler: Any, kwargs: dict[str, Any], way: str, device: torch.device
) -> dict[str, Any]:
    """Title and settings of the contact sheet."""
    network = options["network_pkl"] or DEMO
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
