"""The truth that samplers are measured against: where the ODE of a network takes the latents of each seed.

Heun's method with so many steps that twice as many change nothing to speak of (Karras et al. 2022, Alg. 1). Images are
kept in the cache folder, so that each seed of a network is computed once.
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

from edm_fast import native
from edm_fast.backend import requested
from edm_fast.checkpoint import weights_digest
from edm_fast.files import atomic_write, cache_folder
from edm_fast.plan import accelerate
from edm_fast.sampling import sample, sample_seeds

STEPS = 256
STORED = "stored"  # the precision of a network that runs as it is, where it cannot be accelerated
Progress = Callable[[int], Any]  # told how many evaluations of an image are done


def level_errors(images: Tensor, truth: Tensor) -> Tensor:
    """(N,) RMS differences of images (N, C, H, W) in levels of 255; what lies beyond [-1, 1] is cut off first."""
    difference = images.double().clamp(-1, 1) - truth.double().clamp(-1, 1)
    return difference.flatten(1).square().mean(1).sqrt() * 127.5


def can_accelerate(device: torch.device) -> bool:
    """Not without the compiled part on a CPU, and not where a backend was asked for by name."""
    return device.type != "cpu" or (native.cpu_reason() is None and set(requested().values()) == {"auto"})


def evaluations(steps: int = STEPS) -> int:
    """Of the network for one image."""
    return 2 * steps - 1


class Truth:
    """True images of a network by seed, computed when they are first asked for, and kept in a file."""

    def __init__(self, net: Any, steps: int = STEPS, batch: int = 32) -> None:
        self.steps, self.batch = steps, batch
        self.device = next(net.parameters()).device
        self.digest = weights_digest(net)
        exact = can_accelerate(self.device)
        self.precision = "exact" if exact else STORED
        self._net = accelerate(net, "exact") if exact else net
        key = json.dumps([self.digest, "heun", steps, self.precision, self.device.type])
        self.path = cache_folder() / "truths" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        self._images: dict[int, Tensor] = dict(self._stored())

    def _stored(self) -> Iterator[tuple[int, Tensor]]:
        # a damaged file is as good as none
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(self.path) as file:
            yield from zip(file["seeds"].tolist(), torch.from_numpy(file["images"]), strict=True)

    def missing(self, seeds: Sequence[int]) -> list[int]:
        return [seed for seed in dict.fromkeys(seeds) if seed not in self._images]

    def images(self, seeds: Sequence[int], progress: Progress = lambda evaluations: None) -> Tensor:
        """(N, C, R, R) float32, not cut to [-1, 1]."""
        missing = self.missing(seeds)
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            found = sample_seeds(
                self._net,
                sample,
                part,
                device=self.device,
                solver="heun",
                num_steps=self.steps,
                callback=lambda i, sigma, x, denoised, part=part: progress(len(part) * (2 if sigma else 1)),
            )
            self._images.update(zip(part, found.float().cpu()))
            self._store()
        return torch.stack([self._images[seed] for seed in seeds])

    def _store(self) -> None:
        images = torch.stack([*self._images.values()]).numpy()
        with atomic_write(self.path, kind="npz") as file:
            np.savez(file, seeds=np.array([*self._images]), images=images)
