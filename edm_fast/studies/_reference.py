"""Real images that a study compares with, and the options that choose them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tqdm
from torch import Tensor

from edm_fast.checkpoint import DEMO
from edm_fast.errors import UserError
from edm_fast.evaluation import quality
from edm_fast.studies._study import Entry, Option, Session

OPTIONS = {
    "data": Option("path", None, f"Training images, a folder or zip, or {DEMO!r}.  [default: the demo's digits]"),
    "features": Option("word", None, f"What is compared: {', '.join(quality.FEATURES)}.  [default: by the data]"),
    "detector": Option("path", None, "TorchScript file of Inception, as of edm-fast fid.  [default: none]"),
    "images": Option("count", 5000, "Most training images to compare with, drawn at random."),
}


LEAST = 8  # images


def reference(session: Session, net: Any = None, demo: bool = False) -> quality.Reference:
    """The training images of the session's network, and as many others as it has seeds. UserError if none are known.

    net: another network; demo: whether it was trained on the demo's digits.
    """
    if len(session.seeds) < LEAST:
        raise UserError(f"--seeds are {len(session.seeds)}; expected at least {LEAST} for distances of distributions")
    options, net = session.options, session.net if net is None else net
    data = options["data"] or (DEMO if demo or session.network == DEMO else None)
    if data is None:
        raise UserError(f"the training images of {session.network or 'the run'} are not known; expected --data=PATH")
    names = {name: options[name] for name in ("features", "detector", "images")}
    found = quality.reference(
        str(data), others=len(session.seeds), device=session.device, batch=session.batch, progress=_progress, **names
    )
    shape, drawn = tuple(found.images.shape[1:]), (net.img_channels, net.img_resolution, net.img_resolution)
    if shape != drawn:
        raise UserError(f"images of {data} have shape {shape}, those of the network {drawn}; expected equal ones")
    return found


def scores(real: quality.Reference, features: Tensor) -> Entry:
    """How good images with these features (N, D) are, as entries of a row."""
    found = real.quality(features)
    return {
        "metric": real.name,
        "frechet": found.frechet,
        "kid": found.kid.mean,
        "kid_spread": found.kid.std,
        "precision": found.precision,
        "recall": found.recall,
    }


def _progress(batches: Iterable[Any]) -> Iterable[Any]:
    return tqdm.tqdm(batches, desc="features", unit="batch", leave=False, disable=None, dynamic_ncols=True)
