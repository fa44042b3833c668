"""How many class-conditional samples of a demo network does a classifier of real images label as their class?

The classifier never meets the generator: it is fitted on the images that were held out and measured on those that the
generator was trained on. It is a support vector machine (scikit-learn, RBF kernel, C = 10) on histograms of gradient
directions: 9 directions, cells of 4x4 pixels, blocks of 2x2 cells (after Dalal and Triggs 2005). Digits, which are
gray, are deskewed first, and each has two random small affine changes; of solids, in colour, the mean of the channels
is taken as it is. Measured: 98.3% of the 4,000 digits of training (97.7% cross-validated on its own 1,000), which
bounds what a perfect generator could reach here.

Samples: seeds 0...N-1, class = seed mod classes, the EDM sampler with 18 steps, as `edm-fast generate --class` draws
them.

    python benchmarks/demo/prepare_mnist.py
    python benchmarks/demo/class_accuracy.py --network NETWORK --heldout mnist-heldout.zip --real mnist-train.zip
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import sklearn
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

import edm_fast
from edm_fast.data import ImageFolderDataset
from edm_fast.sampling import edm_sampler, sample_seeds, to_uint8

CELL, DIRECTIONS, COPIES = 4, 9, 2


def deskew(image: np.ndarray) -> np.ndarray:
    """The digit (H, W) moved to its centre of mass and sheared upright, by its second moments."""
    rows, cols = np.indices(image.shape)
    total = image.sum() + 1e-9
    row, col = (rows * image).sum() / total, (cols * image).sum() / total
    variance = ((rows - row) ** 2 * image).sum() / total
    shear = ((rows - row) * (cols - col) * image).sum() / total / max(variance, 1e-6)
    matrix = np.array([[1, 0], [shear, 1]])
    centre = (np.array(image.shape) - 1) / 2
    return scipy.ndimage.affine_transform(image, matrix, offset=np.array([row, col]) - matrix @ centre, order=1)


def gradient_histograms(image: np.ndarray) -> np.ndarray:
    """(H, W) -> normalised histograms of gradient directions of all blocks of 2x2 cells, flat."""
    by_row, by_col = np.gradient(scipy.ndimage.gaussian_filter(image, 0.5))
    angle = np.arctan2(by_row, by_col) % (2 * np.pi) / (2 * np.pi) * DIRECTIONS
    low, share = np.floor(angle).astype(int), angle - np.floor(angle)
    votes = np.zeros((DIRECTIONS, *image.shape))
    rows, cols = np.indices(image.shape)
    size = np.hypot(by_row, by_col)
    np.add.at(votes, (low % DIRECTIONS, rows, cols), size * (1 - share))
    np.add.at(votes, ((low + 1) % DIRECTIONS, rows, cols), size * share)
    n, m = image.shape[0] // CELL, image.shape[1] // CELL
    cells = votes.reshape(DIRECTIONS, n, CELL, m, CELL).sum((2, 4))
    blocks = [cells[:, i : i + 2, j : j + 2].ravel() for i in range(n - 1) for j in range(m - 1)]
    return np.concatenate([block / np.sqrt(np.square(block).sum() + 0.01) for block in blocks])


def features(images: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3) uint8 -> (N, F)."""
    if images.ndim == 4:
        return np.stack([gradient_histograms(image.mean(2) / 255.0) for image in images])
    return np.stack([gradient_histograms(deskew(image / 255.0)) for image in images])


def warp(image: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A small random rotation, scaling, shear and shift of a digit (H, W) uint8."""
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag(rng.uniform(0.85, 1.15, 2)) @ np.array([[1, 0], [shear, 1]])
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre + rng.uniform(-1, 1, 2)
    return scipy.ndimage.affine_transform(image, matrix, offset=offset, order=1)


def fit(images: np.ndarray, labels: np.ndarray, copies: int = COPIES, seed: int = 0) -> SVC:
    """The classifier, fitted on the images and, if they are gray, on `copies` warped versions of each."""
    rng = np.random.RandomState(seed)
    copies = copies if images.ndim == 3 else 0
    warped = [np.stack([warp(image, rng) for image in images]) for _ in range(copies)]
    return SVC(C=10).fit(features(np.concatenate([images, *warped])), np.tile(labels, copies + 1))


def cross_validate(images: np.ndarray, labels: np.ndarray, folds: int = 5) -> float:
    """Share of images labelled rightly by classifiers fitted on the other folds."""
    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(images, labels)
    hits = [fit(images[a], labels[a]).predict(features(images[b])) == labels[b] for a, b in parts]
    return float(np.concatenate(hits).mean())


def without_one_channel(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 1) -> (N, H, W); colours stay."""
    return images[..., 0] if images.shape[3] == 1 else images


def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W) or (N, H, W, 3) uint8 and classes (N,) of a dataset."""
    dataset = ImageFolderDataset(path, use_labels=True)
    if dataset.num_channels not in (1, 3) or not dataset.label_dim:
        raise SystemExit(f"Error: {path} has no classes, or images that are neither gray nor RGB")
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return without_one_channel(np.stack(images).transpose(0, 2, 3, 1)), np.stack(labels).argmax(1)


def draw(network: str, count: int, steps: int, batch: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, as `read` gives them, of seeds 0...N-1 and their classes, seed mod classes."""
    net = edm_fast.load(network, device=device)
    if not net.label_dim or net.img_channels not in (1, 3):
        raise SystemExit(f"Error: {network} draws no classes, or images that are neither gray nor RGB")
    if device == "cpu":
        net = edm_fast.accelerate(net)
    images, labels = [], []
    for label in range(net.label_dim):
        seeds = list(range(label, count, net.label_dim))
        for start in range(0, len(seeds), batch):
            part = seeds[start : start + batch]
            x = sample_seeds(net, edm_sampler, part, class_idx=label, device=device, num_steps=steps)
            images.append(to_uint8(x))
            labels += [label] * len(part)
    return without_one_channel(np.concatenate(images)), np.array(labels)


def confusion(labels: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) counts; row: class asked for, column: class seen."""
    table = np.zeros((classes, classes), dtype=int)
    np.add.at(table, (labels, guesses), 1)
    return table


def print_table(table: np.ndarray) -> None:
    print("asked \\ seen" + "".join(f"{c:5d}" for c in range(len(table))))
    for label, row in enumerate(table):
        print(f"{label:12d}" + "".join(f"{n or '.':>5}" for n in row))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of the run."""
    images, labels = read(args.heldout)
    classifier = fit(images, labels)
    result: dict[str, Any] = {
        "classifier": {"fitted_on": len(images), "cross_validated": cross_validate(images, labels)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    print(f"classifier: {len(images)} held-out images; cross-validated {result['classifier']['cross_validated']:.1%}")
    if args.real:
        real, truth = read(args.real)
        if real.shape[1:] != images.shape[1:]:
            raise SystemExit(f"Error: images of {args.real} and {args.heldout} differ in size or channels")
        result["classifier"]["real_images"] = len(real)
        result["classifier"]["real_accuracy"] = float((classifier.predict(features(real)) == truth).mean())
        print(f"classifier: {result['classifier']['real_accuracy']:.1%} of {len(real)} other real images")
    if args.network:
        start = time.perf_counter()
        samples, asked = draw(args.network, args.count, args.steps, args.batch, args.device)
        seconds = time.perf_counter() - start
        if samples.shape[1:] != images.shape[1:]:
            raise SystemExit(f"Error: images of {args.network} and {args.heldout} differ in size or channels")
        guesses = classifier.predict(features(samples))
        table = confusion(asked, guesses, max(labels.max(), asked.max()) + 1)
        result["network"] = {
            "path": Path(args.network).name,
            "samples": len(samples),
            "steps": args.steps,
            "device": args.device,
            "seconds": round(seconds, 1),
            "accuracy": float((guesses == asked).mean()),
            "per_class": [float(row[i] / max(row.sum(), 1)) for i, row in enumerate(table)],
            "confusion": table.tolist(),
        }
        print_table(table)
        share = result["network"]["accuracy"]
        print(
            f"network: {share:.1%} of {len(samples)} samples seen as their class ({args.steps} steps, {seconds:.0f} s)"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", help="checkpoint of a class-conditional network, or the name of a demo model")
    parser.add_argument("--heldout", default="mnist-heldout.zip", help="real images to fit the classifier on")
    parser.add_argument("--real", help="other real images to measure the classifier on, such as mnist-train.zip")
    parser.add_argument("--count", type=int, default=1000, help="number of samples [default: 1000]")
    parser.add_argument("--steps", type=int, default=18, help="sampler steps [default: 18]")
    parser.add_argument("--batch", type=int, default=50, help="samples per batch [default: 50]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file to write all figures to")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
