"""How good the samples of snapshots are, while a network trains: edm-fast train --quality=N."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edm_fast.errors import UserError
from edm_fast.evaluation import quality
from edm_fast.sampling import SeedSampler

BATCH = 64
REAL = 5000  # images of the data set to compare with, at most


def snapshot_quality(images: int, data: str, device: torch.device) -> Callable[[Any], dict[str, float]]:
    """measure(net) of `training_loop`: Frechet and kernel distance of the images of seeds 0, 1, ... to the data set.

    Features are those of EfficientNet-Lite0. The Frechet distance grows as there are fewer images: it compares with
    others of as many. UserError, now, if the features' weights are not installed.
    """
    if images < 4:
        raise UserError(f"--quality={images}; expected 0, or at least 4 images for a distance")
    real = quality.reference(data, "efficientnet", images=REAL, others=0, device=device, batch=BATCH)
    if len(real.images) < 4 or real.images.shape[1] not in (1, 3):
        raise UserError(f"--quality takes data sets of 4 or more images of 1 or 3 channels; {data} is none")

    def measure(net: Any) -> dict[str, float]:
        sampler = SeedSampler(net, solver="heun", num_steps=18)
        parts = [real.features_of(sampler(range(i, min(i + BATCH, images)))) for i in range(0, images, BATCH)]
        features = torch.cat(parts)
        distance = quality.kid(features, real.features)
        return {f"Quality/{real.name}": real.frechet(features), "Quality/KID": distance.mean}

    return measure
