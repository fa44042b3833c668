"""A stand-in for the Inception detector: a TorchScript archive whose features are a random projection of the pixels."""

import warnings

import numpy as np
import torch


class Projection(torch.nn.Module):
    """features (N, D) = (images / 255).flatten(1) @ proj, in float64."""

    def __init__(self, proj):
        super().__init__()
        self.register_buffer("proj", torch.as_tensor(proj, dtype=torch.float64))

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = (images.to(torch.float64) / 255.0).flatten(1) @ self.proj
        return features if return_features else features.softmax(1)


def save(path, resolution=8, dim=5, seed=0, proj=None):
    """Write the archive for images of `resolution` (or for the given proj); the projection (3 resolution^2, dim)."""
    if proj is None:
        proj = np.random.RandomState(seed).randn(3 * resolution**2, dim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Projection(proj)).save(str(path))
    return np.asarray(proj)
