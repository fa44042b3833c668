"""One reader of labels: convert, check, train and FID take or refuse the same tables and folders."""

import json
import unicodedata
import zipfile

import pytest

from edm_fast.data import ImageFolderDataset
from edm_fast.data._listing import plain_name
from edm_fast.data.convert import convert
from edm_fast.errors import UserError
from helpers import readers
from helpers.readers import GOOD, below, make_folder, make_zip


def pairs(*values):
    return {"labels": [[name, value] for name, value in zip(GOOD, values, strict=False)]}


@pytest.mark.parametrize(
    "table, labels",
    [
        (pairs(0, 2, 1), [0, 2, 1]),
        (pairs(0.0, 2.0, 1), [0, 2, 1]),
        ({"labels": [["./0.png", 0], ["d//../1.png", 1], [".\\2.png", 1]]}, [0, 1, 1]),
        ({"labels": {"0.png": 0, "1.png": 1, "2.png": 1}}, [0, 1, 1]),
        (b"\xef\xbb\xbf" + readers.as_bytes(pairs(0, 1, 1)), [0, 1, 1]),
        ({**pairs(0, 1, 1), "classes": {"cat": 0, "dog": 1}}, [0, 1, 1]),
        ({**pairs(0, 1, 1), "classes": ["cat", "dog"], "more": 1}, [0, 1, 1]),
        ({"labels": [*pairs(0, 1, 1)["labels"], ["gone.png", 7]]}, [0, 1, 1]),
        (pairs([1, 0.5], [0, 2], [1, 1]), [[1, 0.5], [0, 2], [1, 1]]),
    ],
)
def test_labels_that_all_take(tmp_path, table, labels):
    path = make_zip(tmp_path / "a.zip", {**GOOD, "dataset.json": table})
    for reader, said in readers.read(path, tmp_path / "o.zip", labels=True).items():
        assert "refused" not in said and ("labels: dataset.json, " in said or reader == "fid"), (reader, said)
    for dataset in (ImageFolderDataset(name, use_labels=True) for name in (path, tmp_path / "o.zip")):
        assert dataset.raw_labels.tolist() == labels
        assert dataset.label_dim == (len(labels[0]) if isinstance(labels[0], list) else max(labels) + 1)


@pytest.mark.parametrize(
    "table, message",
    [
        (pairs(), "labels no image"),
        (pairs(None, None, None), "labels no image"),
        (pairs(True, False, True), "true or false"),
        (pairs("0", "1", "1"), "texts"),
        (pairs(-1, 0, 0), "class label -1"),
        (pairs(10**30, 0, 0), "class label above"),
        (pairs(0.5, 0, 0), "fractions"),
        (pairs(float("nan"), 0, 0), "fractions"),
        (pairs([[1]], [[1]], [[1]]), "lists of other things"),
        (pairs([True], [False], [True]), "lists of other things"),
        (pairs([], [], []), "lists of other things"),
        (pairs([1], [1, 2], [1]), "vectors of 1 number and"),
        (pairs([float("inf")], [1], [1]), "not finite"),
        (pairs({}, {}, {}), "tables"),
        ({"labels": [["0.png", 0], ["0.png", 1], ["1.png", 0], ["2.png", 0]]}, "more than once"),
        ({"labels": [["0.png", 0], ["./0.png", 0], ["1.png", 0], ["2.png", 0]]}, "more than once"),
        (b'{"labels": {"0.png": 0, "0.png": 1, "1.png": 0, "2.png": 0}}', "a key occurs twice"),
        ({"labels": 5}, "damaged"),
        ({"labels": [["0.png"]]}, "damaged"),
        ({"labels": [[0, 1]]}, "damaged"),
        ({"classes": {}}, "damaged"),
        ([1], "damaged"),
        (b"", "damaged"),
        (b'{"labels": [', "damaged"),
        (b'{"labels": [["\xe9.png", 0]]}', "damaged"),
        (b"[" * 100_000, "damaged"),
        ({"labels": [["x/0.png", 0], ["x/1.png", 0]]}, "without a label"),
    ],
)
def test_labels_that_all_refuse(tmp_path, table, message):
    path = make_zip(tmp_path / "a.zip", {**GOOD, "dataset.json": table})
    found = readers.read(path, tmp_path / "o.zip", labels=True)
    assert "refused" not in found.pop("fid")  # labels are nothing to FID
    for reader, said in found.items():
        assert said.startswith("refused: ") and message in said, (reader, said)
    assert not (tmp_path / "o.zip").exists() and "labels: not used" in readers.train(path)


def test_a_missing_label_is_told_and_null_means_none(tmp_path):
    some = make_folder(tmp_path / "some", {**below("00000/"), "dataset.json": {"labels": [["00000/0.png", 1]]}})
    found = readers.read(some, tmp_path / "o.zip", labels=True)
    assert "labels: dataset.json, 2 classes, 2 without, so that the result has no labels" in found["convert"]
    assert all("2 of 3 images without a label: 00000/1.png" in found[reader] for reader in ("check", "train"))
    for _ in range(2):  # the second try is not to find empty labels
        with pytest.raises(UserError, match="2 of 3 images without a label"):
            ImageFolderDataset(some, use_labels=True).raw_labels  # noqa: B018
    null = make_folder(tmp_path / "null", {**below("00000/"), **below("00001/"), "dataset.json": {"labels": None}})
    found = readers.read(null, tmp_path / "p.zip", labels=True)
    assert "labels: none (null in dataset.json)" in found["convert"] and found["train"] == "refused: no labels"
    assert not ImageFolderDataset(tmp_path / "p.zip", use_labels=True).has_labels


@pytest.mark.parametrize(
    "tops, classes",
    [
        (("dog/", "cat/"), {"cat": 0, "dog": 1}),
        (("2/", "10/", "1/"), {"1": 0, "10": 1, "2": 2}),
        (("", "cat/"), {"": 0, "cat": 1}),
        (("train/", "car/", "bus/"), {"bus": 0, "car": 1, "train": 2}),
        (("train/",), None),
        (("train/", "val/"), "train, val"),
        (("Train/", "Test/", "extra/"), "Test, Train"),
        (("training/", "validation/"), "training, validation"),
        (("train/", ""), "train"),
    ],
)
def test_class_folders(tmp_path, tops, classes):
    folder = make_folder(tmp_path / "f", {name: data for top in tops for name, data in below(top).items()})
    said = []
    if isinstance(classes, str):
        with pytest.raises(UserError, match=f"{classes} in .* parts of a data set.*--source=") as caught:
            convert(folder, tmp_path / "o.zip", report=said.append)
        assert "\n" not in str(caught.value)
        return
    convert(folder, tmp_path / "o.zip", report=said.append)
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        table = json.loads(archive.read("dataset.json"))
    assert table.get("classes") == classes
    for name, number in (classes or {}).items():
        assert f"{name or 'files at the top'} = {number}" in said[0]
    assert ImageFolderDataset(tmp_path / "o.zip", use_labels=True).label_dim == len(classes or ())
    convert(tmp_path / "o.zip", tmp_path / "p", report=said.append)  # the names of classes are carried on
    assert json.loads((tmp_path / "p" / "dataset.json").read_text()) == table


def test_composed_names_are_one():
    assert plain_name(unicodedata.normalize("NFD", "\xe9/a.png")) == "\xe9/a.png"
    assert {plain_name(name) for name in ("a/b", "./a/b", "a//b", "a\\b", "/a/b", "x/../a/b", "a/./b")} == {"a/b"}
