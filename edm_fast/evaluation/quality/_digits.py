"""A small classifier of digits, whose features judge the demo model.

benchmarks/demo/train_classifier.py trains it on the digits that the demo model was trained on.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import torch
import torch.nn.functional as F

from edm_fast.checkpoint import load_tensors
from edm_fast.errors import UserError

CHANNELS = (1, 8, 16, 32, 64)
RESOLUTION = 32


class DigitsClassifier(torch.nn.Module):
    """Four 3x3 convolutions with ReLU, the first three before a maximum over 2x2; 64 means of maps; 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(CHANNELS[:-1], CHANNELS[1:], strict=True)
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.logits = torch.nn.Linear(CHANNELS[-1], 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, 1, 32, 32) in [0, 1] -> (N, 64)."""
        for i, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            x = F.max_pool2d(x, 2) if i < 3 else x
        return x.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, 1, 32, 32) in [0, 1] -> logits (N, 10)."""
        return self.logits(self.features(x))


class DigitFeatures:
    """Images (N, 3, 32, 32) uint8, gray or taken for it -> (N, 64) float32."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        path = Path(str(importlib.resources.files("edm_fast"))) / "assets" / "demo-classifier.safetensors"
        classifier = DigitsClassifier()
        classifier.load_state_dict(load_tensors(path))
        self.classifier = classifier.eval().requires_grad_(False).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2:] != (RESOLUTION, RESOLUTION):
            height, width = images.shape[2:]
            raise UserError(f"images are {width}x{height}; the classifier of digits expects {RESOLUTION}x{RESOLUTION}")
        return self.classifier.features(images.to(torch.float32).mean(1, keepdim=True) / 255)
