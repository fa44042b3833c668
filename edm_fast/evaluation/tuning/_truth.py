"""The truth that samplers are measured against, kept: where the ODE of a network takes the latents of each seed.

iPNDM of order 4 (Liu et al. 2022; Zhang and Chen 2023) in 192 steps comes as near to it as 256 steps of Heun's method
(Karras et al. 2022, Alg. 1), which cost 511 evaluations (benchmarks/NOTES.md). A few seeds are compared with 576 steps
of Heun's. Images are stored in the cache folder, so that each seed of a network is computed once.
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
from edm_fast.evaluation.accuracy import draw, error_levels
from edm_fast.files import atomic_write, cache_folder
from edm_fast.plan import accelerate, unaccelerated
from edm_fast.sampling import deal_seeds, sample

BATCH = 32
STEPS = 192
FINER = 3  # times the steps, of Heun's method, that the truth is compared with
COMPARED = 4  # seeds that are compared
STORED = "stored"  # the precision of a network that runs as it is, where it cannot be accelerated
Tick = Callable[[int], Any]  # told how many evaluations of an image are done


class Truth:
    """True images of a network by seed, computed when they are first asked for, and kept in a file."""

    def __init__(self, net: Any, steps: int = STEPS, solver: str = "ipndm") -> None:
        self.net, self.steps, self.solver = net, steps, solver
        self.device = next(net.parameters()).device
        self.digest = weights_digest(net)
        exact = unaccelerated(self.device) is None
        self.precision = "exact" if exact else STORED
        self._run = accelerate(net, "exact") if exact else net
        self._solver = sample.solver(net, None, solver=solver, num_steps=steps)  # type: ignore[attr-defined]
        key = json.dumps([self.digest, solver, steps, self.precision, self.device.type])
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
        return len(self.missing(seeds)) * self._solver.evaluations

    def images(self, seeds: Sequence[int], tick: Tick = lambda evaluations: None) -> Tensor:
        """(N, C, R, R) float32, not cut to [-1, 1]."""
        for part in deal_seeds(self.missing(seeds), BATCH):

            def count(i: int, sigma: float, x: Tensor, denoised: Tensor, images: int = len(part)) -> None:
                tick(images * sum(stage.evaluates for stage in self._solver.steps[i].stages))

            if part:
                settings: dict[str, Any] = {"solver": self.solver, "num_steps": self.steps, "callback": count}
                found = draw(self._run, sample, part, device=self.device, **settings)
                self._images.update(zip(part, found.float().cpu(), strict=True))
                self._store()
        return torch.stack([self._images[seed] for seed in seeds])

    def _store(self) -> None:
        images = torch.stack([*self._images.values()]).numpy()
        with atomic_write(self.path, kind="npz") as file:
            np.savez(file, seeds=np.array([*self._images]), images=images)

    def finer(self) -> Truth:
        return Truth(self.net, FINER * self.steps, "heun")

    def apart(self, seeds: Sequence[int], tick: Tick = lambda evaluations: None) -> float:
        """The worst RMS difference in levels from the finer solution, over the first few seeds."""
        few = seeds[:COMPARED]
        return error_levels(self.finer().images(few, tick), self.images(few)).max().item()
