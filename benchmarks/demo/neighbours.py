"""Does a demo network repeat its training images? A picture of samples, each beside the nearest of them by pixels.

The last two lines compare distances: copies would lie nearer to their neighbours than held-out images to theirs.

    python benchmarks/demo/neighbours.py --network demo-solids --train solids-train.zip --heldout solids-heldout.zip \\
        --picture neighbours.png
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from class_accuracy import draw, read
from PIL import Image

from edm_fast.evaluation.quality import nearest
from edm_fast.files import atomic_write

NEIGHBOURS, SCALE = 3, 3


def neighbours(images: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square differences (N, 3) of images from the nearest training images, in levels, and their indices."""
    x, y = (torch.from_numpy(part.reshape(len(part), -1).astype(np.float32)) for part in (images, train))
    distances, indices = nearest(x, y, NEIGHBOURS)
    return (distances / x.shape[1] ** 0.5).numpy(), indices.numpy()


def picture(images: np.ndarray, train: np.ndarray, indices: np.ndarray, columns: int = 4) -> np.ndarray:
    """Each image, then its neighbours, with a gap after them; `columns` such groups in a row."""
    gap = np.full_like(images[0][:, :8], 255)
    groups = [np.concatenate([image, *train[near], gap], 1) for image, near in zip(images, indices, strict=True)]
    groups += [np.full_like(groups[0], 255)] * (-len(groups) % columns)
    rows = [np.concatenate(groups[i : i + columns], 1) for i in range(0, len(groups), columns)]
    return np.concatenate(rows, 0).repeat(SCALE, 0).repeat(SCALE, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", required=True, help="checkpoint, or the name of a demo model")
    parser.add_argument("--train", required=True, help="images that the network was trained on")
    parser.add_argument("--heldout", required=True, help="images that it never saw")
    parser.add_argument("--picture", required=True, help="file to write")
    parser.add_argument("--count", type=int, default=200, help="number of samples [default: 200]")
    parser.add_argument("--steps", type=int, default=18, help="sampler steps [default: 18]")
    args = parser.parse_args()
    train, heldout = read(args.train)[0], read(args.heldout)[0][: args.count]
    samples, labels = draw(args.network, args.count, args.steps, batch=50, device="cpu")
    distances, indices = neighbours(samples, train)
    others, _ = neighbours(heldout, train)
    shown = np.concatenate([np.flatnonzero(labels == label)[:3] for label in range(labels.max() + 1)])
    with atomic_write(args.picture, kind="png") as file:
        Image.fromarray(picture(samples[shown], train, indices[shown])).save(file, "png")
    for name, found in (("samples", distances), ("held-out images", others)):
        low, median, high = np.percentile(found[:, 0], (5, 50, 95))
        print(f"{len(found)} {name}: {median:.1f} levels ({low:.1f} to {high:.1f}) from the nearest training image")


if __name__ == "__main__":
    main()
