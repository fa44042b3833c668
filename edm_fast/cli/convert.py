"""edm-fast convert: checkpoints between the published pickle and safetensors, and a look inside one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edm_fast import checkpoint
from edm_fast.checkpoint.native import WEIGHTS_NAME
from edm_fast.cli import _options as opt
from edm_fast.cli._options_file import OPTIONS_NAME, read_json
from edm_fast.errors import UserError
from edm_fast.files import same_file
from edm_fast.sampling import load_sampler

MAX_LINE = 1000


@click.command()
@click.argument("source", metavar="SRC", type=opt.INPUT_PATH_OR_URL)
@click.argument("dest", metavar="[DST]", type=opt.OUTPUT_PATH, required=False)
@click.option("--inspect", "inspect_only", help="Print the structure of SRC and write nothing", is_flag=True)
@click.option("--key", help="Which network of SRC  [default: ema, or the only one]", metavar="NAME")
@click.option(
    "--preset",
    help="Published model, or a .json file that says how to build it, if SRC is a state_dict  [default: none]",
    metavar="NAME",
)
@click.option(
    "--sampler",
    help="Sampler file of the network, for a folder  [default: none]",
    metavar="FILE",
    type=opt.INPUT_PATH,
)
@click.option("--license", help="Of the model card, as the hub calls it: apache-2.0  [default: none]", metavar="ID")
@click.option(
    "--training-options",
    help=f"Of the run, for the model card  [default: {OPTIONS_NAME} beside SRC]",
    metavar="FILE",
    type=opt.INPUT_PATH,
)
@click.option("--sha256", help="Expected digest of SRC  [default: not checked]", metavar="HEX")
@click.option("--overwrite", help="Replace DST if it exists", is_flag=True)
def command(
    source: str,
    dest: str | None,
    inspect_only: bool,
    key: str | None,
    preset: str | None,
    sampler: str | None,
    license: str | None,
    training_options: str | None,
    sha256: str | None,
    overwrite: bool,
) -> None:
    """Convert a checkpoint, or print what is in one. Nothing stored in SRC is ever executed.

    SRC is a published .pkl, a training-state .pt, a safetensors file or folder, or the http(s) address of a file; it is
    recognised by content. A state_dict (of torch.save or safetensors) needs --preset. DST ending in .safetensors
    becomes a single file, in .pkl the published structure; a name without such an ending becomes a folder in the
    Hugging Face hub layout, with a model card; one that is there stays, unless it names other weights (README.md.old).
    Other endings (.pt, .onnx) are refused.

    \b
    edm-fast convert network-snapshot-200000.pkl my-model.safetensors
    edm-fast convert --inspect network-snapshot-200000.pkl
    edm-fast convert --preset=edm-cifar10-32x32-cond-vp state_dict.pt my-model.safetensors
    edm-fast convert --license=apache-2.0 --sampler=net.sampler.json network-snapshot-200000.pkl my-model
    """
    if (dest is None) != inspect_only:
        raise click.UsageError("expected SRC and DST, or --inspect and SRC")
    if dest is None and preset is not None:
        raise click.UsageError("--preset says how to read SRC; expected DST, too")
    if dest is not None:
        form = checkpoint.destination(dest)
        refuse_overwrite(source, dest, overwrite)
    for name, value in (("sampler", sampler), ("license", license), ("training-options", training_options)):
        if value is not None and (dest is None or form != "folder"):
            raise UserError(f"--{name} goes into a folder; expected DST without an ending such as .safetensors")
    content = checkpoint.inspect(source, sha256=sha256)
    networks = content["networks"]
    if dest is None and key is not None and key not in networks:
        raise UserError(f"{source} holds no {key!r}; networks in it: {', '.join(map(repr, networks)) or 'none'}")
    for line in describe(source, content, tensors=inspect_only):
        click.echo(line if line.isprintable() else ascii(line))
    if dest is None:
        return
    net = checkpoint.load(source, key=key or default_key(networks), preset=preset)
    if form == "pkl":
        kwargs = content["entries"].get("dataset_kwargs")
        checkpoint.save_pkl(net, dest, dataset_kwargs=kwargs if isinstance(kwargs, dict) else None)
    elif form == "folder":
        training = read_options(source, training_options)
        tuned = None if sampler is None else load_sampler(sampler, net)
        others = checkpoint.hub_files(net, f"USER/{os.path.basename(os.path.abspath(dest))}", license, training, tuned)
        checkpoint.save(net, dest, others)
        card = Path(dest, "README.md").read_text(encoding="utf-8", errors="replace")
        untold = checkpoint.left_untold(card, license, training if training_options else None, tuned)
        if untold:
            click.echo(f"Warning: the model card in {dest} stays, without {', '.join(untold)}", err=True)
    else:
        checkpoint.save(net, dest)
    click.echo(f"wrote {dest}")


def read_options(source: str, path: str | None) -> dict[str, Any] | None:
    """The options of the training run: of the file that is named, or else of one beside the source.

    What lies beside it was not asked for: a file that cannot be read is left out after one line.
    """
    beside = os.path.join(os.path.dirname(source), OPTIONS_NAME)
    if path is None and not (os.path.exists(source) and os.path.isfile(beside)):
        return None
    try:
        return read_json(path or beside)
    except UserError as error:
        if path is not None:
            raise
        click.echo(f"Warning: {error}; the model card goes without them", err=True)
        return None


def default_key(networks: Mapping[str, Any]) -> str:
    return next(iter(networks)) if len(networks) == 1 else "ema"


def refuse_overwrite(source: str, dest: str, overwrite: bool) -> None:
    if any(same_file(a, b) for a in _files(source) for b in _files(dest)):
        raise UserError(f"{dest}: source and destination are the same")
    if os.path.exists(dest) and not overwrite:
        raise UserError(f"{dest} exists already; expected a new name, or --overwrite")


def _files(path: str) -> tuple[str, str]:
    """A checkpoint's name, and that of the weights in it if it is a folder."""
    return path, os.path.join(path, WEIGHTS_NAME)


def describe(name: str, content: dict[str, Any], tensors: bool) -> list[str]:
    """What a checkpoint holds: one line per network and per further entry; with `tensors` each keyword and shape."""
    lines = [f"{name}: {content['format']}"]
    for key, network in content["networks"].items():
        kwargs, shapes = network["init_kwargs"], network["tensors"]
        values = sum(math.prod(shape) for shape in shapes.values())
        notes = [f"    note: {note}" for note in network["notes"]]
        if network["class_name"] is None:
            lines += [
                f"  {key}: {f'state_dict, {values:,} values in {len(shapes)} tensors' if shapes else 'not readable'}"
            ]
            lines += [f"    {k} {shape}" for k, shape in shapes.items() if tensors] + notes
            continue
        side = f"{kwargs.get('img_resolution', '?')}x{kwargs.get('img_resolution', '?')}"
        inner = f" with {kwargs['model_type']}" if "model_type" in kwargs else ""
        lines.append(
            f"  {key}: {network['class_name']}{inner}, {kwargs.get('img_channels', '?')} channels at {side}, "
            f"{kwargs.get('label_dim', 0) or 'no'} classes, {values:,} values in {len(shapes)} tensors"
        )
        if tensors:
            lines += [f"    {k} = {v!r}" for k, v in kwargs.items()]
            lines += [f"    {k} {shape}" for k, shape in shapes.items()]
            lines += notes
    return lines + [f"  {key}: {shorten(value)}" for key, value in content["entries"].items()]


def shorten(value: Any) -> str:
    text = one_line(value)
    return text if len(text) <= MAX_LINE else text[:MAX_LINE] + "..."


def one_line(value: Any) -> str:
    if isinstance(value, dict):
        shown = {k: v for k, v in value.items() if not str(k).startswith("_init") and k != "class_name"}
        text = ", ".join(f"{k}={v!r}" for k, v in shown.items())
        return f"{value['class_name']}({text})" if "class_name" in value else text
    return repr(value)
