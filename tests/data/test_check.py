"""dataset check: each fault gets a line that names it."""

import json
import warnings
import zipfile

import numpy as np
import PIL.Image
import pytest

from edm_fast.data._output import member_name
from edm_fast.data.check import check
from edm_fast.errors import UserError
from edm_fast.pictures import encode_png

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
    assert report.facts == ["4 images of 8x8 RGB; labels: dataset.json, 3 classes"]
    assert report.notes == report.problems == []
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "a")
    assert check(tmp_path / "a") == report


@pytest.mark.parametrize(
    "kwargs, note",
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "5 members compressed; stored ones are read faster"),
        ({"labels": None}, "no labels (no dataset.json): training works without --cond only"),
        ({"table": '{"labels": null}'}, "no labels (null in dataset.json): training works without --cond only"),
        ({"labels": (0, 1, 1, 3)}, "classes without an image: 2"),
        (
            {"labels": None, "extra": ["sub/dataset.json"]},
            "no labels (sub/dataset.json does not lie at the top): training works without --cond only",
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


PNG = encode_png(np.zeros((8, 8, 3), np.uint8), compress_level=0)
FIRST = "00000/img00000000.png"


@pytest.mark.parametrize(
    "kwargs, problem",
    [
        ({"images": {}, "labels": None}, "no image files in"),
        (
            {"images": with_image(1, PNG[:100])},
            "1 of 4 images cannot be read, the first because: cannot read image 00000/img00000001",
        ),
        ({"images": with_image(1, b"text")}, "1 of 4 images cannot be read"),
        (
            {"images": with_image(2, np.zeros((16, 8, 3), np.uint8))},
            "1 image of 8x16 RGB unlike the rest, 8x8 RGB: 00000/img00000002",
        ),
        ({"images": with_image(2, np.zeros((8, 8), np.uint8))}, "1 image of 8x8 gray unlike the rest"),
        ({"images": all_of(8, 16, 3)}, "images are 16x8, not square"),
        ({"images": all_of(12, 12, 3)}, "the side 12 is not a power of two"),
        ({"images": all_of(8, 8, 4)}, "images have 4 channels; expected 1 (gray) or 3 (RGB)"),
        ({"labels": (0, 1)}, "2 of 4 images without a label: 00000/img00000002.png, 00000/img00000003.png"),
        ({"labels": (0, 1, -1, 2)}, "has the class label -1"),
        ({"labels": (0, 1, "cat", 2)}, "labels that are integers and texts; expected integers"),
        ({"labels": (0, 1, [1], 2)}, "labels that are integers and vectors of 1 number"),
        ({"labels": ([1, 2], [1], [1, 2], [0, 0])}, "labels that are vectors of 1 number and vectors of 2 numbers"),
        ({"labels": ([1, "x"],) * 4}, "lists of other things than numbers"),
        ({"table": "{"}, " is damaged ("),
        ({"table": '{"labels": [3]}'}, " is damaged ("),
        ({"table": '{"labels": [[3, 4]]}'}, " is damaged ("),
        ({"table": "[]"}, " is damaged ("),
        ({"table": json.dumps({"labels": [[FIRST, 0]] * 2})}, "labels 1 names more than once"),
        ({"table": json.dumps({"labels": [[FIRST.replace("/", "\\"), 0]]})}, "3 of 4 images without a label"),
    ],
)
def test_problems(tmp_path, kwargs, problem):
    assert any(problem in line for line in check(make(tmp_path / "a.zip", **kwargs)).problems)


def test_vectors(tmp_path):
    (line,) = check(make(tmp_path / "a.zip", labels=([0, 1.5],) * 4)).facts
    assert line == "4 images of 8x8 RGB; labels: dataset.json, vectors of 2 numbers"


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
    assert any(line.startswith("cannot read dataset.json") and "Bad CRC-32" in line for line in check(path).problems)


def test_nothing_to_look_at(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"nonsense")
    (tmp_path / "file.txt").touch()
    for name, message in [("none", "does not exist"), ("bad.zip", "not a readable zip"), ("file.txt", "neither")]:
        with pytest.raises(UserError, match=message):
            check(tmp_path / name)


def test_many_names_are_cut_short(tmp_path):
    for i in range(5):
        PIL.Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
        PIL.Image.new("L", (8, 9)).save(tmp_path / f"odd{i}.png")
    assert (
        "5 images of 8x9 gray unlike the rest, 8x8 gray: odd0.png, odd1.png, odd2.png and 2 more"
        in check(tmp_path).problems
    )
