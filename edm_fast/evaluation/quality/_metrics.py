"""Distances between two sets of features (N, D) and (M, D), in float64.

The Frechet distance is in edm_fast.evaluation.fid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from edm_fast.errors import UserError

ROWS = 1024  # of the distances that are in memory at once


class Kid(NamedTuple):
    """Mean and standard deviation over blocks, and the images in each block."""

    mean: float
    std: float
    block: int


def kid(x: torch.Tensor, y: torch.Tensor, blocks: int = 100, block: int | None = None, seed: int = 0) -> Kid:
    """Kernel distance of Binkowski et al. 2018: unbiased MMD^2 with the kernel k(a, b) = (a.b / D + 1)^3.

        MMD^2 = sum_(i != j) [k(x_i, x_j) + k(y_i, y_j)] / (m (m - 1)) - 2 sum_(i, j) k(x_i, y_j) / m^2

    Averaged over random blocks of m = `block` images of each set: unless given 1000, at most half of the smaller set,
    so that the blocks differ. It may be negative. Its expectation does not depend on the number of images.
    """
    x, y = _pair(x, y, least=4)
    smaller = min(len(x), len(y))
    size = min(1000, smaller // 2) if block is None else block
    if not 2 <= size <= smaller:
        raise UserError(f"blocks of {size} images do not fit sets of {len(x)} and {len(y)}; expected 2 to {smaller}")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(blocks):
        a, b = (part[torch.from_numpy(rng.choice(len(part), size, replace=False))] for part in (x, y))
        within = sum(float(kernel.sum() - kernel.trace()) for kernel in (_cubic(a, a), _cubic(b, b)))
        values.append(within / (size * (size - 1)) - 2 * float(_cubic(a, b).mean()))
    return Kid(float(np.mean(values)), float(np.std(values)), size)


def _cubic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def precision_recall(x: torch.Tensor, y: torch.Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of Kynkaanniemi et al. 2019 for generated features x and real features y.

    The manifold of a set is the union of balls around its members that reach to the k-th nearest other member.
    Precision: the share of x in the manifold of y; recall: the share of y in the manifold of x.
    """
    x, y = _pair(x, y, least=k + 1)
    return _share_within(x, y, k), _share_within(y, x, k)


def _share_within(x: torch.Tensor, y: torch.Tensor, k: int) -> float:
    radii = nearest(y, y, k + 1)[0][:, k]  # the nearest is the member itself
    inside = [(torch.cdist(rows, y) <= radii).any(1) for rows in x.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def nearest(x: torch.Tensor, y: torch.Tensor, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distances (N, count), rising, from each of x to its nearest in y, and their indices (N, count)."""
    x, y = _pair(x, y, least=1)
    if not 1 <= count <= len(y):
        raise UserError(f"{count} neighbours of {len(y)} images; expected 1 to {len(y)}")
    parts = [torch.cdist(rows, y).topk(count, largest=False) for rows in x.split(ROWS)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _pair(x: torch.Tensor, y: torch.Tensor, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise UserError(f"features {tuple(x.shape)} and {tuple(y.shape)}; expected (N, D) and (M, D), each of {least}+")
    return x.double(), y.double()
