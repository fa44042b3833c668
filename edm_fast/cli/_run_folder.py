"""The folder of a training run: its name, and which one it is."""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

import click

from edm_fast import distributed
from edm_fast.errors import UserError
from edm_fast.networks import ARCHITECTURES
from edm_fast.training import ImageFolderDataset, is_edm2, run_results

RUN_NAME = re.compile(r"(\d+)-?(.*)")


def run_name(settings: dict[str, Any], dataset: ImageFolderDataset, desc: str | None) -> str:
    """The run folder's name without its number."""
    network = settings["network_kwargs"]
    kind = "cond" if settings["dataset_kwargs"].get("use_labels") else "uncond"
    precision = "fp16" if network.get("use_fp16") else settings.get("precision", "fp32")
    precond = network["class_name"].rpartition(".")[2].removesuffix("Precond").lower()
    name = f"{dataset.name}-{kind}-{_architecture(network)}-{precond or 'edm'}"
    name += f"-gpus{distributed.world_size()}-batch{settings['batch_size']}-{precision}"
    if desc is None:
        return name
    if "/" in desc or os.sep in desc:
        raise UserError(f"--desc={desc} has a slash; expected text that may stand in a folder's name")
    return f"{name}-{desc}"


def _architecture(network: dict[str, Any]) -> str:
    """What --arch calls it, or the name of its class if --arch has none of its kind."""
    if is_edm2(network):
        return "edm2"
    kinds = ("model_type", "embedding_type", "encoder_type", "decoder_type")
    for name, kwargs in ARCHITECTURES.items():
        if all(network.get(kind) == kwargs.get(kind) for kind in kinds):
            return name
    return str(network.get("model_type", network["class_name"].rpartition(".")[2])).lower()


def numbered_runs(outdir: str) -> list[tuple[int, str, str]]:
    """(number, name, folder) of the run folders in outdir."""
    folders = [entry.name for entry in os.scandir(outdir) if entry.is_dir()] if os.path.isdir(outdir) else []
    return [(int(match[1]), match[2], folder) for folder in folders if (match := RUN_NAME.fullmatch(folder))]


def pick_run_dir(outdir: str, name: str, nosubdir: bool, auto: bool) -> str:
    """outdir itself, or a numbered folder in it: with --resume auto the newest of this name, otherwise a new one.

    The newest with results, that is: a start that failed in between is no reason to begin again.
    """
    if nosubdir:
        return outdir
    found = numbered_runs(outdir)
    same = [(number, folder) for number, other, folder in found if other == name]
    if auto and same:
        results = [(number, folder) for number, folder in same if run_results(os.path.join(outdir, folder))]
        return os.path.join(outdir, max(results or same)[1])
    new = os.path.join(outdir, f"{max((number for number, _, _ in found), default=-1) + 1:05d}-{name}")
    if auto:
        others = {other: folder for _, other, folder in sorted(found) if run_results(os.path.join(outdir, folder))}
        near = difflib.get_close_matches(name, others, n=3, cutoff=0)
        if near and distributed.rank() == 0:
            names = ", ".join(others[other] for other in near)
            click.echo(
                f"Warning: {outdir} has no run named {name}, so {new} is a new one; others there: {names}", err=True
            )
    return new
