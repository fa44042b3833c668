"""edm-fast ema: averages of weights of any width, from the snapshots of a finished or running training."""

from __future__ import annotations

import os
from pathlib import Path

import click
import tqdm

from edm_fast import checkpoint
from edm_fast.cli import _options as opt
from edm_fast.cli._widths import WIDTHS
from edm_fast.errors import UserError, UserOSError, count
from edm_fast.files import check_output
from edm_fast.training import StoredAverage, images_of, inputs_until, reconstruct_averages, stored_averages


@click.group()
def command() -> None:
    """Averages of weights after training, of widths that were not tracked (Karras et al. 2024).

    \b
    edm-fast ema reconstruct --indir=run --list
    edm-fast ema reconstruct --indir=run --outdir=out --std=0.05,0.075,...,0.15
    """


@command.command()
@click.option("--indir", metavar="DIR", type=opt.INPUT_PATH, required=True, help="Folder of the snapshots.")
@click.option("--prefix", "--inprefix", metavar="TEXT", help="Of snapshots with this name.  [default: all]")
@click.option("--instd", metavar="LIST", type=WIDTHS, help="Of snapshots of these widths.  [default: all]")
@click.option(
    "--std",
    "--outstd",
    "stds",
    metavar="LIST",
    type=WIDTHS,
    help="Widths to make, as in 0.05,0.1 or 0.01,0.02,...,0.1.  [default: none]",
)
@click.option(
    "--kimg", "--outkimg", metavar="INT", type=opt.POSITIVE_INT, help="Time, in thousand images.  [default: latest]"
)
@click.option("--outdir", metavar="DIR", type=opt.OUTPUT_PATH, help="Where to write.  [default: none]")
@click.option("--outprefix", metavar="TEXT", default="phema", show_default=True, help="How file names begin.")
@click.option(
    "--format",
    "ending",
    type=click.Choice(["safetensors", "pkl"]),
    default="safetensors",
    show_default=True,
    help="Of the files.",
)
@click.option("--batch", metavar="INT", type=opt.POSITIVE_INT, default=8, show_default=True, help="Made at a time.")
@click.option("--skip-existing", "--skip", is_flag=True, help="Leave out what is there already.")
@click.option("--list", "list_only", is_flag=True, help="Print the snapshots and write nothing.")
def reconstruct(
    indir: str,
    prefix: str | None,
    instd: list[float] | None,
    stds: list[float] | None,
    kimg: int | None,
    outdir: str | None,
    outprefix: str,
    ending: str,
    batch: int,
    skip_existing: bool,
    list_only: bool,
) -> None:
    """Write the average of each width in --std as DIR/phema-KIMG-STD.safetensors.

    It is a weighted sum of all snapshots PREFIX-KIMG-STD.pkl (or .safetensors) up to its time. The relative width is
    that of the time which counts, from 0 to 0.289. Snapshots are read as often as --batch does not cover --std.
    """
    stored = stored_averages(indir, prefix, instd)
    if list_only:
        for one in stored:
            click.echo(f"{one.nimg // 1000:>9} kimg  std {one.std:.3f}  {one.path.name}")
        click.echo(f"{count(len(stored), 'snapshot')} in {indir}")
        return
    if stds is None or outdir is None:
        raise click.UsageError("expected --std and --outdir, or --list")
    used, nimg = inputs_until(stored, None if kimg is None else images_of(kimg))
    if os.sep in outprefix or not outprefix:
        raise UserError(f"--outprefix={outprefix!r}; expected text that may begin a file's name")
    paths = {std: Path(outdir) / f"{outprefix}-{nimg // 1000:07d}-{std:.3f}.{ending}" for std in stds}
    if len(set(paths.values())) < len(paths):
        raise UserError("--std: two widths have the same three digits; expected widths that name different files")
    if taken := {one.path.resolve() for one in used} & {path.resolve() for path in paths.values()}:
        raise UserError(f"{taken.pop()} is one of the snapshots; expected another --outdir or --outprefix")
    wanted = [std for std in stds if not (skip_existing and paths[std].exists())]
    try:
        os.makedirs(outdir, exist_ok=True)
    except OSError as error:
        raise UserOSError(f"cannot write to {outdir}: {error.strerror or error}") from error
    for std in wanted:
        check_output(paths[std], ending if ending == "safetensors" else "pickle")
    write(used, wanted, nimg, paths, batch)
    done = f"{count(len(wanted), 'average')} of {count(len(used), 'snapshot')}"
    click.echo(f"{done}, {nimg // 1000} kimg: {outdir}{os.sep}")


def write(used: list[StoredAverage], stds: list[float], nimg: int, paths: dict[float, Path], batch: int) -> None:
    parts = [stds[start : start + batch] for start in range(0, len(stds), batch)]
    with tqdm.tqdm(total=len(parts) * len(used), unit="snapshot") as bar:
        for part in parts:
            for std, net in zip(part, reconstruct_averages(used, part, nimg, bar.update), strict=True):
                checkpoint.save(net, paths[std])
