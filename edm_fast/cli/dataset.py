"""edm-fast dataset: convert images to the layout training reads, and look for what is wrong with a dataset."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

import click
import tqdm

from edm_fast.cli import _options as opt
from edm_fast.data import check as checking
from edm_fast.data import convert as conversion


class DefaultGroup(click.Group):
    """`dataset --source=...` means `dataset convert --source=...`, as the published command is called."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)


def parse_resolution(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """WxH or W,H -> (width, height)."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})[x,]([0-9]{1,9})", text)
    if match is None:
        raise click.BadParameter(f"{text!r}; expected WxH, for example 64x64", ctx, param)
    return int(match[1]), int(match[2])


@click.group(cls=DefaultGroup)
def command() -> None:
    """Convert images to a dataset, or check one.

    \b
    edm-fast dataset --source=photos --dest=photos-64x64.zip --transform=center-crop --resolution=64x64
    edm-fast dataset check photos-64x64.zip
    """


@command.command()
@click.option(
    "--source",
    help="Folder, zip, CIFAR-10 or MNIST archive, or LSUN *_lmdb folder",
    metavar="PATH",
    type=opt.INPUT_PATH,
    required=True,
)
@click.option("--dest", help="Folder (empty or absent) or .zip", metavar="PATH", type=opt.OUTPUT_PATH, required=True)
@click.option("--max-images", help="Take only the first images  [default: all]", metavar="INT", type=int)
@click.option(
    "--transform",
    help="Crop every image  [default: no cropping]",
    type=click.Choice([*conversion.TRANSFORMS]),
)
@click.option(
    "--resolution",
    help="Width and height of the result  [default: as they are]",
    metavar="WxH",
    callback=parse_resolution,
)
def convert(source: str, dest: str, **options: Any) -> None:
    """Convert images to the layout training reads: PNGs in numbered folders and a dataset.json with the labels.

    \b
    Sources:
      FOLDER                      all images below it; labels from dataset.json or, without one, the top-level folders
      FILE.zip                    all images in it; labels from dataset.json
      cifar-10-python.tar.gz      CIFAR-10, python version
      train-images-idx3-ubyte.gz  MNIST, with train-labels-idx1-ubyte.gz beside it
      NAME_lmdb                   LSUN

    Hidden files and what is no image are left out and counted. The result is written under a temporary name first,
    and appears when it is complete.
    """
    images = conversion.convert(source, dest, progress=show_progress, report=report, **options)
    click.echo(f"{images} image{'' if images == 1 else 's'} in {dest}")


def show_progress(items: Iterable[conversion.Item], count: int) -> Iterable[conversion.Item]:
    return tqdm.tqdm(items, total=count, unit="image", disable=not sys.stderr.isatty())


def report(line: str) -> None:
    tqdm.tqdm.write(line)


@command.command()
@click.argument("path", metavar="FILE", type=opt.INPUT_PATH)
def check(path: str) -> None:
    """Explain what is wrong with the dataset in a folder or zip. Exit code 0 if nothing is, else 2."""
    result = checking.check(path)
    for line in result.facts:
        click.echo(line)
    for line in result.notes:
        click.echo(f"note: {line}")
    for line in result.problems:
        click.echo(f"problem: {line}")
    if result.problems:
        click.echo(f"{path}: not usable as it is")
        sys.exit(2)
    click.echo(f"{path}: good")
