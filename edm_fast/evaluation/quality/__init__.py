"""How good images are: distances between their features and those of real images, and their nearest real images.

Features come from the classifier of digits inside the package, from EfficientNet-Lite0, or from the Inception network
of a file. Only the last gives a distance that is named FID; distances by different features do not compare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from edm_fast.checkpoint import DEMO
from edm_fast.data import demo_digits
from edm_fast.errors import UserError
from edm_fast.evaluation import fid
from edm_fast.evaluation.quality._digits import DigitFeatures, DigitsClassifier
from edm_fast.evaluation.quality._efficientnet import EfficientNetLite0, load_efficientnet
from edm_fast.evaluation.quality._metrics import Kid, kid, nearest, precision_recall
from edm_fast.sampling import to_uint8

__all__ = [
    "DigitsClassifier",
    "EfficientNetLite0",
    "FEATURES",
    "Kid",
    "Quality",
    "Reference",
    "kid",
    "nearest",
    "precision_recall",
    "reference",
]

FEATURES = {"digits": "FD-demo", "efficientnet": "FD-ENL0", "inception": "FID"}  # and their Frechet distances' names
Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Quality(NamedTuple):
    """Of a set of images. `frechet` is the distance that `Reference.name` names; see the functions for the rest."""

    frechet: float
    kid: Kid
    precision: float
    recall: float


@dataclass
class Reference:
    """Real images (M, C, H, W) uint8 with their features (M, D), to compare others with.

    `others`: real images that are not among them, which show what a perfect model would get; there may be none.
    """

    name: str  # of the Frechet distance: FD-demo, FD-ENL0 or FID
    extract: fid.Features
    images: torch.Tensor
    others: torch.Tensor
    device: torch.device
    batch: int = 64
    progress: Progress = lambda batches: batches

    @functools.cached_property
    def features(self) -> torch.Tensor:
        return self.features_of(self.images)

    @functools.cached_property
    def statistics(self) -> fid.Statistics:
        return _statistics(self.features)

    def features_of(self, images: torch.Tensor) -> torch.Tensor:
        """(N, D) float64 of images (N, 1 or 3, H, W): bytes, or floating-point numbers as samplers return them."""
        if images.is_floating_point():
            images = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)
        with torch.no_grad():
            parts = [
                self.extract(part.expand(-1, 3, -1, -1).to(self.device)).double().cpu()
                for part in self.progress(images.split(self.batch))
            ]
        return torch.cat(parts)

    def distance(self, images: torch.Tensor) -> float:
        """The Frechet distance of images, as in `features_of`, to the reference. The more images, the smaller it is."""
        return self.frechet(self.features_of(images))

    def frechet(self, features: torch.Tensor) -> float:
        return fid.frechet_distance(*_statistics(features), *self.statistics)

    def quality(self, features: torch.Tensor) -> Quality:
        """Every measure of images with these features (N, D)."""
        return Quality(self.frechet(features), kid(features, self.features), *precision_recall(features, self.features))


def _statistics(features: torch.Tensor) -> fid.Statistics:
    sums = fid.FeatureSums(features.shape[1])
    sums.add(features)
    return sums.statistics()


def reference(
    data: str = DEMO,
    features: str | None = None,
    detector: str | None = None,
    images: int = 5000,
    others: int = 1000,
    device: torch.device | str = "cpu",
    batch: int = 64,
    progress: Progress = lambda batches: batches,
) -> Reference:
    """Real images to compare with: "demo" for the digits that the demo model was trained on, or a folder or zip.

    At most `images` of them, drawn at random, and at most `others` more. `features`: digits, efficientnet or inception;
    unless given, inception with a `detector` (its TorchScript file, see fid.load_detector), digits for the demo's data
    and efficientnet for other data. progress(batches) may wrap the loops over images.
    """
    if features is None:
        features = "inception" if detector else "digits" if data == DEMO else "efficientnet"
    if (features == "inception") != bool(detector):
        need = "need their TorchScript file" if features == "inception" else "take no TorchScript file"
        raise UserError(f"features {features} {need}; expected inception with --detector=FILE, or neither")
    if features == "inception":
        extract = fid.load_detector(str(detector), device)
    elif features in FEATURES:
        extract = DigitFeatures(device) if features == "digits" else load_efficientnet(device)
    else:
        raise UserError(f"no features {features!r}; expected {', '.join(FEATURES)}")
    return Reference(FEATURES[features], extract, *_real(data, images, others), torch.device(device), batch, progress)


def _real(data: str, images: int, others: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random parts (N, C, H, W) uint8 of a data set, the second at most half of it; the demo's are set apart."""
    if data == DEMO:
        (first, _), (rest, _) = demo_digits("train"), demo_digits("heldout")
        parts = [first[_shuffled(len(first))[:images]], rest[_shuffled(len(rest))[:others]]]
    else:
        dataset = fid.open_images(data)
        order, border = _shuffled(len(dataset)), min(others, len(dataset) // 2)
        indices = order[border : border + images], order[:border]
        none = np.empty((0, *dataset.image_shape), np.uint8)
        parts = [np.stack([dataset[i][0] for i in part]) if len(part) else none for part in indices]
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])


def _shuffled(count: int) -> np.ndarray:
    """0 ... count - 1 in a random order that is always the same."""
    return np.random.RandomState(0).permutation(count)
