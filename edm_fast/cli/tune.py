"""edm-fast tune: the fewest evaluations that keep a bound on the distance from the converged solution."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click
import torch
import tqdm

import edm_fast
from edm_fast.cli import _options as opt
from edm_fast.cli._device import resolve_device
from edm_fast.cli._outputs import expect_output
from edm_fast.errors import UserError, count
from edm_fast.evaluation import tuning
from edm_fast.evaluation.tuning import FITTED, SOLVERS
from edm_fast.files import check_output, is_url
from edm_fast.plan import PRECISIONS, unaccelerated
from edm_fast.sampling import SUFFIX, load_sampler, save_sampler

MOST_EVALUATIONS = 100
ALL = [FITTED, *SOLVERS]
HEAD = f"evaluations  precision {'solver':24s} {'levels':20s}      mean median  held out: mean  median    95%  worst"


def names(text: str) -> list[str]:
    """A,B"""
    return [name.strip() for name in text.split(",")]


@click.command()
@click.argument("network", metavar="NETWORK", type=opt.INPUT_PATH_OR_URL)
@click.option(
    "--max-error",
    metavar="LEVELS",
    type=opt.POSITIVE,
    default=1.0,
    show_default=True,
    help="Most RMS difference from the true image, in levels of 255.",
)
@click.option(
    "--statistic",
    type=click.Choice(list(tuning.STATISTICS)),
    default="mean",
    show_default=True,
    help="Of the held-out seeds, that --max-error is for.",
)
@click.option(
    "--nfe", metavar="LIST", type=opt.INT_LIST, default="4-14", show_default=True, help="Numbers of evaluations to try."
)
@click.option(
    "--seeds",
    metavar="LIST",
    type=opt.INT_LIST,
    default="100000-100127",
    show_default=True,
    help="The first half is held out, the other searched on.",
)
@click.option("--solvers", metavar="A,B", type=opt.Parsed(names), help=f"Of {', '.join(ALL)}.  [default: all of these]")
@click.option("--precisions", metavar="A,B", type=opt.Parsed(names), help="As of generate.  [default: all but exact]")
@click.option("--out", metavar="FILE", type=opt.OUTPUT_PATH, help=f"[default: NETWORK{SUFFIX}]")
@click.option(
    "--check",
    metavar="FILE",
    type=opt.INPUT_PATH,
    help="Search nothing: measure a sampler file on all of --seeds.  [default: none]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(network: str, out: str | None, check: str | None, device: str, **options: Any) -> None:
    """Search solver, order, noise levels, number of evaluations and precision for a network, and write a sampler file.

    The truth is the solution of the network's ODE by 192 steps of iPNDM, compared with 576 of Heun's method on a few
    seeds. The error of an image is its RMS difference from the truth of the same seed, in levels of 255. The search
    takes the cheapest sampler first and stops at the first that keeps the bound: on held-out seeds, which no choice was
    made on, the mean of the errors is two standard errors below --max-error. Their median, 95th percentile and worst
    are written beside it. Where a trajectory decides between two images, any solver of few steps may end at the other
    one: a few such seeds make up much of a mean, and --statistic=median looks past them.

    NETWORK is a path, an http(s) address, or demo for the model inside. Also written is a picture, FILE.png, of
    held-out seeds: the image, the truth, and their difference 16 times larger. The cache folder (EDM_FAST_CACHE_DIR)
    keeps the truth and every measured error, so that a search that was stopped goes on when the command is given again.
    `edm-fast generate --sampler=FILE` draws with what was found.

    \b
    edm-fast tune model.safetensors --max-error=1
    edm-fast generate --network=model.safetensors --sampler=model.sampler.json --outdir=out
    """
    start = time.perf_counter()
    where = resolve_device(device, group=False)
    if check is not None:
        click.echo(measure(network, where, check, options["seeds"]))
        return
    path = Path(out or default_name(network))
    task = checked_task(where, **options)
    picture = path.with_suffix(".png")
    expect_output(str(path), "json", network)
    check_output(picture, "png")
    net = edm_fast.load(network, device=where)
    truth = tuning.Truth(net)
    apart = compute_truth(truth, task.held_out)
    measured = tuning.Measured(truth, tuning.prepared(net, task.precisions))
    if len(measured):
        click.echo(f"what earlier searches measured of {count(len(measured), 'sampler')} is used again")
    found = run_search(task, measured)
    if not found.kept:
        click.echo(
            f"no sampler of {min(task.evaluations)} to {max(task.evaluations)} evaluations keeps the bound of "
            f"{task.max_error:g} levels; expected a larger --max-error or --nfe"
        )
        raise SystemExit(1)
    tuned = tuning.tuned_sampler(task, found, truth, apart, os.path.basename(network))
    save_sampler(path, tuned)
    tuning.save_pairs(picture, task, found, measured)
    click.echo(f"{tuned.describe()}\n{path} and {picture} written after {time.perf_counter() - start:.0f} s")


def default_name(network: str) -> str:
    """Beside a file, or in the current folder for what is none."""
    if is_url(network):
        network = os.path.basename(network.rstrip("/"))
    stem, ending = os.path.splitext(network.rstrip(os.sep))
    return (stem if ending in (".safetensors", ".pkl", ".pt") else network.rstrip(os.sep)) + SUFFIX


def checked_task(
    device: torch.device, nfe: list[int], solvers: list[str] | None, precisions: list[str] | None, **rest: Any
) -> tuning.Wanted:
    """UserError for what can be told wrong before anything is loaded."""
    if not nfe or min(nfe) < 1 or max(nfe) > MOST_EVALUATIONS:
        raise UserError(f"--nfe expects numbers from 1 to {MOST_EVALUATIONS}, as in 4-14")
    allowed = list(PRECISIONS[device.type]) if unaccelerated(device) is None else [tuning.STORED]
    for name in precisions or []:
        if name not in allowed:
            raise UserError(f"--precisions: {name!r} does not run here; expected some of {', '.join(allowed)}")
    chosen = precisions or allowed[len(allowed) > 1 :]
    ordered = sorted(set(chosen), key=allowed.index)
    return tuning.Wanted(evaluations=sorted(set(nfe)), solvers=solvers or ALL, precisions=ordered, **rest)


def measure(network: str, device: torch.device, path: str, seeds: list[int]) -> str:
    """The errors of a sampler file, in words."""
    if len(set(seeds)) < 2:
        raise UserError("--seeds expects two seeds or more, as in 0-63")
    net = edm_fast.load(network, device=device)
    tuned = load_sampler(path, net)
    truth = tuning.Truth(net)
    compute_truth(truth, seeds)
    found = tuning.Errors.of(tuning.Measured(truth, tuning.prepared(net, [tuned.precision])).of_file(tuned, seeds))
    return (
        f"{tuned.evaluations} evaluations, {count(len(set(seeds)), 'seed')}: mean {found.mean:.3f} +- {found.se:.3f} "
        f"levels, median {found.median:.3f}, 95th percentile {found.p95:.3f}, worst {found.worst:.3f}"
    )


def compute_truth(truth: tuning.Truth, seeds: list[int]) -> float:
    """The images of all seeds; how far twice the steps change them."""
    few, finer = seeds[: tuning.COMPARED], truth.finer()
    with tqdm.tqdm(total=truth.cost(seeds) + finer.cost(few), desc="truth", unit="eval") as bar:
        truth.images(seeds, bar.update)
        apart = truth.apart(seeds, bar.update)
    click.echo(
        f"truth of {count(len(set(seeds)), 'seed')}: {truth.solver} in {truth.steps} steps, {truth.precision}; "
        f"{finer.solver} in {finer.steps} steps differs on {count(len(few), 'image')} by {apart:.4f} levels at most"
    )
    return apart


def run_search(task: tuning.Wanted, measured: tuning.Measured) -> tuning.Found:
    """The table, line by line; its last line."""
    costs = tuning.seconds(measured.networks)
    times = (f"{name} {seconds / tuning.BATCH * 1e3:.2f} ms" for name, seconds in costs.items())
    click.echo(f"an evaluation of an image: {', '.join(times)}")
    found = None
    with tqdm.tqdm(desc="samplers", unit="") as bar:
        bar.write(HEAD)
        for found in tuning.Search(task, measured, bar.update).run(costs):
            bar.write(line(found))
    if found is None:
        raise UserError("no solver can spend any of these --nfe; expected other numbers or --solvers")
    return found


def line(found: tuning.Found) -> str:
    text = f"{found.trial.evaluations:11d}  {found.precision:9s} {found.trial!s:45s}  "
    text += f"{found.searched.mean:8.3f} {found.searched.median:6.3f}"
    if found.held_out is not None:
        error = found.held_out
        text += f"  {error.mean:.3f} +- {error.se:.3f}  {error.median:6.3f}  {error.p95:5.2f}  {error.worst:5.2f}"
    return text + ("  kept" if found.kept else "")
