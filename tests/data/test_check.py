"""dataset check: each fault gets a line that names it."""

import json
import warnings
import zipfile

import numpy as np
import PIL.Image
import pytest

from edm_fast.data._output import encode_png, member_name
from edm_fast.data.check import check
from edm_fast.errors import UserError

GOOD = {f"{member_name(i)}": np.full((8, 8, 3), i, np.uint8) for i in range(4)}


def make(path, images=None, labels=(0, 1, 1, 2), table=None, extra=(), compression=zipfile.ZIP_STORED):
    images = GOOD if images is None else images
    if table is None and labels is not None:
        table = json.dumps({"labels": [list(pair) for pair in zip(GOOD, labels, strict=False)]})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, image in images.items():
            archive.writestr(name, image if isinstance(image, bytes) else encode_png(image))
        if table is not None:
            archive.writestr("dataset.json", table)
        for name in extra:
            archive.writestr(name, b"x")
    return path


def test_good_zip_and_folder(tmp_path):
    path = make(tmp_path / "a.zip")
    report = check(path)
    assert report.facts == ["4 images, 8x8, 3 channels", "labels: integers, 3 classes"]
    assert report.notes == report.problems == []
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "a")
    assert check(tmp_path / "a") == report


@pytest.mark.parametrize(
    "kwargs, note",
    [
        ({"extra": ["readme.txt"]}, "1 file not read as an image: readme.txt"),
        ({"compression": zipfile.ZIP_DEFLATED}, "5 members compressed; stored ones are read faster"),
        ({"labels": None}, "no dataset.json: training works without --cond only"),
        ({"table": '{"labels": null}'}, "dataset.json has no labels: training works without --cond only"),
        ({"labels": (0, 1, 1, 3)}, "classes without an image: 2"),
        (
            {"labels": None, "extra": ["sub/dataset.json"]},
            "no dataset.json (there is sub/dataset.json, but it has to lie at the top): "
            "training works without --cond only",
        ),
    ],
)
def test_notes_are_harmless(tmp_path, kwargs, note):
    report = check(make(tmp_path / "a.zip", **kwargs))
    assert note in report.notes and not report.problems


def with_image(index, image):
    return {name: image if i == index else old for i, (name, old) in enumerate(GOOD.items())}


def all_of(*shape):
    return {name: np.zeros(shape, np.uint8) for name in GOOD}


PNG = encode_png(np.zeros((8, 8, 3), np.uint8))
FIRST = "00000/img00000000.png"


@pytest.mark.parametrize(
    "kwargs, problem",
    [
        ({"images": {}, "labels": None}, "no images; expected PNG files"),
        (
            {"images": with_image(1, PNG[:100])},
            "1 of 4 images cannot be read, the first because: cannot read image 00000/img00000001",
        ),
        ({"images": with_image(1, b"text")}, "1 of 4 images cannot be read"),
        (
            {"images": with_image(2, np.zeros((16, 8, 3), np.uint8))},
            "1 image of 8x16 with 3 channels unlike the rest: 00000/img00000002",
        ),
        ({"images": with_image(2, np.zeros((8, 8), np.uint8))}, "1 image of 8x8 with 1 channel unlike the rest"),
        ({"images": all_of(8, 16, 3)}, "images are 16x8, not square"),
        ({"images": all_of(12, 12, 3)}, "the side 12 is not a power of two"),
        ({"images": all_of(8, 8, 4)}, "images have 4 channels; expected 1 (gray) or 3 (RGB)"),
        ({"labels": (0, 1)}, "2 of 4 images without a label: 00000/img00000002.png, 00000/img00000003.png"),
        ({"images": {FIRST: GOOD[FIRST]}}, "3 labels for images that are not there: 00000/img00000001"),
        ({"labels": (0, 1, -1, 2)}, "negative class label -1"),
        ({"labels": (0, 1, "cat", 2)}, "labels are integers and str values; expected all integers"),
        ({"labels": (0, 1, [1], 2)}, "labels are integers and vectors"),
        ({"labels": ([1, 2], [1], [1, 2], [0, 0])}, "label vectors of lengths 1, 2"),
        ({"labels": ([1, "x"],) * 4}, "not numbers"),
        ({"table": "{"}, "dataset.json is damaged"),
        ({"table": '{"labels": [3]}'}, "dataset.json is damaged"),
        ({"table": '{"labels": [[3, 4]]}'}, "dataset.json is damaged"),
        ({"table": "[]"}, "dataset.json is damaged"),
        ({"table": json.dumps({"labels": [[FIRST, 0]] * 2})}, "labels 1 names more than once"),
        ({"table": json.dumps({"labels": [[FIRST.replace("/", "\\"), 0]]})}, "backslashes"),
    ],
)
def test_problems(tmp_path, kwargs, problem):
    assert any(problem in line for line in check(make(tmp_path / "a.zip", **kwargs)).problems)


def test_vectors(tmp_path):
    assert "labels: vectors of 2 numbers" in check(make(tmp_path / "a.zip", labels=([0, 1.5],) * 4)).facts


def test_names_twice(tmp_path):
    path = make(tmp_path / "a.zip")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(FIRST, PNG)
    assert f"names that occur more than once: {FIRST}" in check(path).problems


def test_flipped_bit_in_labels(tmp_path):
    path = make(tmp_path / "a.zip")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"labels"', b'{"labelz"', 1))
    assert any(line.startswith("dataset.json cannot be read: Bad CRC-32") for line in check(path).problems)


def test_nothing_to_look_at(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"nonsense")
    (tmp_path / "file.txt").touch()
    for name, message in [("none", "no file or folder"), ("bad.zip", "not a readable zip"), ("file.txt", "neither")]:
        with pytest.raises(UserError, match=message):
            check(tmp_path / name)


def test_many_names_are_cut_short(tmp_path):
    for i in range(5):
        PIL.Image.new("L", (8, 8 + i)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").touch()
    assert "5 files not read as an image: 0.txt, 1.txt, 2.txt and 2 more" in check(tmp_path).notes
