"""The truth that samplers are measured against, kept: where the ODE of a network takes the latents of each seed.

Heun's method with so many steps that twice as many change nothing to speak of (Karras et al. 2022, Alg. 1). Images are
stored in the cache folder, so that each seed of a network is computed once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm_fast.checkpoint import weights_digest
from edm_fast.evaluation.accuracy import STEPS, draw, error_levels
from edm_fast.files import atomic_write, cache_folder
from edm_fast.plan import accelerate, unaccelerated
from edm_fast.sampling import deal_seeds, sample

BATCH = 32
COMPARED = 4  # seeds whose images by twice the steps are looked at
STORED = "stored"  # the precision of a network that runs as it is, where it cannot be accelerated
Tick = Callable[[int], Any]  # told how many evaluations of an image are done


class Truth:
    """True images of a network by seed, computed when they are first asked for, and kept in a file."""

    def __init__(self, net: Any, steps: int = STEPS) -> None:
        self.net, self.steps = net, steps
        self.settings: dict[str, Any] = {"solver": "heun", "num_steps": steps}
        self.device = next(net.parameters()).device
        self.digest = weights_digest(net)
        exact = unaccelerated(self.device) is None
        self.precision = "exact" if exact else STORED
        self._run = accelerate(net, "exact") if exact else net
        key = json.dumps([self.digest, "heun", steps, self.precision, self.device.type])
        self.path = cache_folder() / "truths" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        self._images: dict[int, Tensor] = dict(self._stored())

    def _stored(self) -> Iterator[tuple[int, Tensor]]:
        # a damaged file is as good as none
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(self.path) as file:
            yield from zip(file["seeds"].tolist(), torch.from_numpy(file["images"]), strict=True)

    def missing(self, seeds: Sequence[int]) -> list[int]:
        return [seed for seed in dict.fromkeys(seeds) if seed not in self._images]

    def cost(self, seeds: Sequence[int]) -> int:
        """Evaluations of an image that `images` is going to need."""
        return len(self.missing(seeds)) * (2 * self.steps - 1)

    def images(self, seeds: Sequence[int], tick: Tick = lambda evaluations: None) -> Tensor:
        """(N, C, R, R) float32, not cut to [-1, 1]."""
        for part in deal_seeds(self.missing(seeds), BATCH):

            def count(i: int, sigma: float, x: Tensor, denoised: Tensor, images: int = len(part)) -> None:
                tick(images * (2 if sigma > 0 else 1))

            if part:
                found = draw(self._run, sample, part, device=self.device, **self.settings, callback=count)
                self._images.update(zip(part, found.float().cpu(), strict=True))
                self._store()
        return torch.stack([self._images[seed] for seed in seeds])

    def _store(self) -> None:
        images = torch.stack([*self._images.values()]).numpy()
        with atomic_write(self.path, kind="npz") as file:
            np.savez(file, seeds=np.array([*self._images]), images=images)

    def finer(self) -> Truth:
        return Truth(self.net, 2 * self.steps)

    def apart(self, seeds: Sequence[int], tick: Tick = lambda evaluations: None) -> float:
        """The worst RMS difference in levels that twice the steps make, over the first few seeds."""
        few = seeds[:COMPARED]
        return error_levels(self.finer().images(few, tick), self.images(few)).max().item()
