"""What a run will take, told before it begins: work and disk space. Its time follows when the first steps are done."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from edm_fast.backend import use_backend
from edm_fast.data import ImageFolderDataset
from edm_fast.errors import count
from edm_fast.training._build import build_network, split
from edm_fast.training._recipes import EdmRecipe, recipe_for
from edm_fast.training._run import Options

BACKWARD = 2  # gradients of inputs and of weights, each as much work as the evaluation
MOMENTS = {"Adam": 2, "AdamW": 2}  # tensors that an optimizer keeps for each parameter


def forecast(options: Options, dataset: ImageFolderDataset, run_dir: str) -> list[str]:
    """Lines about a run with these options, of `check_settings`. Nothing is allocated and no random number is drawn."""
    with torch.device("meta"):
        net = build_network(options.network_kwargs, dataset)
    recipe = recipe_for(options)
    recipe.start_average(net)
    images = options.total_kimg * 1000
    work = _flops(net)
    trained = work * (1 + BACKWARD)
    lines = [
        f"Work: {_with_unit(work, 'FLOP')} for an image, with gradients {_with_unit(trained, 'FLOP')}; "
        f"in all {_with_unit(trained * images, 'FLOP')}"
    ]
    snapshots, states = _files(options, recipe)
    average, state = _sizes(options, recipe, net)
    parts = [f"{count(snapshots, 'snapshot')} of {_with_unit(average, 'B')}"] * bool(snapshots)
    parts += [f"up to {count(states, 'training state')} of {_with_unit(state, 'B')}"] * bool(states)
    needed, free = snapshots * average + states * state, _free(run_dir)
    if needed:
        lines.append(f"Disk: {' and '.join(parts)}: {_with_unit(needed, 'B')}; {_with_unit(free, 'B')} are free")
    if needed > free:
        lines.append(f"Warning: the results need more than what is free in {run_dir}")
    return lines


@torch.no_grad()
def _flops(net: Any) -> int:
    """Products and sums in the convolutions and matrix products of one evaluation of one image; net has no numbers."""
    from torch.utils.flop_counter import FlopCounterMode  # takes a while, which other users of this package need not

    images = torch.zeros([1, net.img_channels, net.img_resolution, net.img_resolution], device="meta")
    sigma, labels = torch.ones([1], device="meta"), torch.zeros([1, net.label_dim], device="meta")
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        net(images, sigma, labels)
    return counter.get_total_flops()


def _files(options: Options, recipe: EdmRecipe) -> tuple[int, int]:
    """(snapshots, training states) that the run leaves: those of the first and of the last tick count, too."""
    steps = math.ceil(round(options.total_kimg * 1000) / options.batch_size)
    tick = max(math.ceil(round(options.kimg_per_tick * 1000) / options.batch_size), 1)  # in steps
    ticks = max(math.ceil((steps - (recipe.first_tick == 0)) / tick), 0)  # after the first one
    snap, dump = options.snapshot_ticks, options.state_dump_ticks
    snapshots = 1 + math.ceil(ticks / snap) if snap else 0
    kept = options.keep_states if options.dump_minutes else 0
    return snapshots, (math.ceil(ticks / dump) if dump else 0) + kept


def _sizes(options: Options, recipe: EdmRecipe, net: torch.nn.Module) -> tuple[float, float]:
    """Bytes of (the files of one snapshot, a training state)."""
    values = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    averages = 0 if recipe.averages is None else len(recipe.averages.averages)
    optimizer = MOMENTS.get(split(options.optimizer_kwargs, "optimizer", "Adam")[0], 0)
    snapshot = values / 2 * averages if averages else values  # those of EDM2 are in half precision
    return snapshot, values * (2 + averages + optimizer)


def _free(run_dir: str) -> int:
    folder = Path(run_dir).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _with_unit(number: float, unit: str) -> str:
    """12345678 -> "12.3 M" and the unit."""
    power = 0
    while number >= 999.5:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {' kMGTPEZYRQ'[power].strip()}{unit}"
