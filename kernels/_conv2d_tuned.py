"""Blocks of convolutions that were measured on a chip: tuned-CHIP.json, which the sweep of `make gpu-report` writes.

A file has, by the sizes of a call (`key`), the fields of `Blocks` that were fastest there. Other sizes and chips go by
the model of `_conv2d_blocks`. Ways of `PROVED` are [1] where they have run on all layers, and rightly: the kernel
in Gluon, which a plan would wait for for ever if it hung, and kernels launched while those before them end. The former
is [0] again once a race has been found in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path

import torch

from edm_fast.kernels._conv2d_blocks import Blocks

FOLDER = Path(__file__).parent
PROVED = "boxes", "winograd-early"


def key(pixels: int, outputs: int, inputs: int, taps: int, phases: int, dtype: torch.dtype) -> str:
    """Of a convolution without a prologue; types of one size run at one speed."""
    return f"{pixels} {outputs} {inputs} {taps} {phases} {dtype.itemsize}"


def chip(name: str) -> str:
    """A device's name as a part of a file's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


@functools.cache
def _known(name: str) -> tuple[dict[str, Blocks], frozenset[str]]:
    """Of the chip of this name, and ways that are proved there; nothing if there is no file that makes sense."""
    try:
        found = json.loads((FOLDER / f"tuned-{chip(name)}.json").read_text())
        works = [way for way in PROVED if found.pop(way, None) == [1]]
        return {str(sizes): Blocks(*map(int, fields)) for sizes, fields in found.items()}, frozenset(works)
    except (OSError, ValueError, TypeError, AttributeError):
        return {}, frozenset()


def table(name: str) -> dict[str, Blocks]:
    """The blocks that are known of the chip of this name."""
    return _known(name)[0]


def unproved(way: str, device: torch.device) -> str | None:
    """Why plans do not take a way that the sweep has not run on a chip, or None if it has."""
    if device.type == "cuda" and way in _known(_name(device))[1]:
        return None
    return "it has not run on this chip: `make gpu-report REPORT=--sweep` tries it"


def version(name: str) -> str:
    """Of what is known of a chip: plans that were measured with other blocks are of no use."""
    known = table(name)
    return hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()[:8] if known else "model"


@functools.cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def tuned(x: torch.Tensor, pixels: int, outputs: int, inputs: int, taps: int, phases: int) -> Blocks | None:
    """The blocks measured for these sizes on the chip of x; None where products of float32 do without matrix units."""
    if not x.is_cuda or (x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32):
        return None
    return table(_name(x.device)).get(key(pixels, outputs, inputs, taps, phases, x.dtype))
