"""Averages of any width from the snapshots of a run, after training. Karras et al. 2024, Section 3.2 and Alg. 3."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm_fast.checkpoint import load
from edm_fast.diffusion.ema import reconstruction
from edm_fast.errors import UserError, UserOSError, some

NAME = re.compile(r"(.+)-(\d+)-(\d*\.\d+)\.(pkl|safetensors)")


class StoredAverage(NamedTuple):
    """A snapshot file by its name PREFIX-KIMG-STD.pkl or .safetensors."""

    path: Path
    prefix: str
    nimg: int  # images seen
    std: float  # width of the profile


def images_of(kimg: int) -> int:
    """The multiple of 1024 images that file names have as kimg thousands."""
    nimg = (1000 * kimg + 999) // 1024 * 1024
    if nimg // 1000 != kimg:
        raise UserError(f"no multiple of 1024 images is {kimg} thousand; expected a time of EDM2's snapshots")
    return nimg


def stored_averages(
    folder: str | os.PathLike[str], prefix: str | None = None, stds: Collection[float] | None = None
) -> list[StoredAverage]:
    """The snapshots in a folder, by time, then width; of one prefix and of some widths, if given."""
    if not os.path.isdir(folder):
        raise UserOSError(f"{folder} is no folder; expected one with snapshots PREFIX-KIMG-STD.pkl")
    found = []
    for entry in os.scandir(folder):
        match = NAME.fullmatch(entry.name)
        if match is None or prefix not in (None, match[1]):
            continue
        std = float(match[3])
        if stds is None or any(abs(std - wanted) < 5e-4 for wanted in stds):
            found.append(StoredAverage(Path(entry.path), match[1], images_of(int(match[2])), std))
    return sorted(found, key=lambda stored: (stored.nimg, stored.std, stored.path.name))


def inputs_until(stored: Sequence[StoredAverage], nimg: int | None) -> tuple[list[StoredAverage], int]:
    """(snapshots with 0 < time <= nimg, nimg); None: the latest time. UserError unless nimg is the time of one."""
    times = sorted({s.nimg for s in stored if s.nimg > 0})
    if not times:
        raise UserError("no snapshots PREFIX-KIMG-STD.pkl of a time above 0 to reconstruct from")
    nimg = times[-1] if nimg is None else nimg
    if nimg not in times:
        there = some(str(time // 1000) for time in times)
        raise UserError(f"no snapshot of {nimg // 1000} thousand images; expected one of these times: {there}")
    used = [s for s in stored if 0 < s.nimg <= nimg]
    for one, other in zip(used, used[1:]):
        if one[2:] == other[2:]:
            names = f"{one.path.name} and {other.path.name}"
            raise UserError(f"{names} are of one time and width; expected one of them, by prefix or width")
    return used, nimg


@torch.no_grad()
def reconstruct_averages(
    stored: Sequence[StoredAverage], stds: Sequence[float], nimg: int | None = None, tick: Any = None
) -> list[torch.nn.Module]:
    """The networks of these widths at nimg images (None: the latest), weights and buffers in half precision.

    Each is a weighted sum of all snapshots up to nimg, in float32 in the order of time and width; buffers are those of
    the last. Coefficients are those of `diffusion.ema.reconstruction`. tick(): called after each snapshot. UserError
    for a snapshot of another network.
    """
    used, nimg = inputs_until(stored, nimg)
    c = reconstruction([s.nimg for s in used], [s.std for s in used], [nimg] * len(stds), stds)
    sums: list[dict[str, torch.Tensor]] = [{} for _ in stds]
    net: Any = None
    for snapshot, coefficients in zip(used, c.tolist(), strict=True):
        before, net = net, load(snapshot.path)
        if before is not None and (type(net), net.init_kwargs) != (type(before), before.init_kwargs):
            raise UserError(f"{snapshot.path} holds another network than the snapshots before it")
        for name, parameter in net.named_parameters():
            for total, coefficient in zip(sums, coefficients, strict=True):
                term = parameter.to(torch.float32) * coefficient
                total[name] = total[name] + term if name in total else term
        if tick is not None:
            tick()
    results = []
    for total in sums:
        result = copy.deepcopy(net)
        for name, parameter in result.named_parameters():
            parameter.copy_(total[name])
        results.append(result.half())
    return results
