"""Data set items, labels and errors against golden digests."""

import builtins
import hashlib

import numpy as np
import pytest

from edm_fast.data import ImageFolderDataset
from helpers import golden_cases as g

ENTRIES = g.entries("dataset")


def pairs(key):
    rows = [(entry, case) for entry in ENTRIES for case in entry["config"].get(key, [])]
    return [pytest.param(*row, id=f"{row[0]['id']}-{i}") for i, row in enumerate(rows)]


def locate(entry, name):
    return g.path(entry, entry["id"].split("/")[0]) / name


@pytest.mark.parametrize("entry, case", pairs("cases"))
def test_golden(entry, case):
    dataset = ImageFolderDataset(locate(entry, case["source"]), **case["kwargs"])
    assert len(dataset) == case["length"] == len(case["items"])
    for key in ("image_shape", "label_shape", "label_dim", "num_channels", "resolution", "name"):
        assert case[key] is None or getattr(dataset, key) == case[key], key
    assert dataset.has_labels is case["has_labels"]
    assert bool(dataset.has_onehot_labels) is case["has_onehot_labels"]
    for _ in range(2 if case["kwargs"].get("cache") else 1):  # a second pass reads the cache
        for i, want in enumerate(case["items"]):
            image, label = dataset[i]
            assert image.dtype == np.uint8 and list(image.shape) == case["image_shape"]
            assert hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() == want["image_sha256"]
            assert label.dtype == np.float32 and label.tolist() == want["label"] == dataset.get_label(i).tolist()
            details = dataset.get_details(i)
            assert (details.raw_idx, details.xflip) == (want["raw_idx"], want["xflip"])


@pytest.mark.parametrize("entry, case", pairs("errors"))
def test_golden_errors(entry, case, tmp_path):
    path = locate(entry, case["path"])
    if not path.exists():  # stand-ins: an empty folder, or a file of some other kind
        path = tmp_path / case["path"]
        path.write_bytes(b"") if path.suffix else path.mkdir()
    with pytest.raises(getattr(builtins, case["error"])):
        ImageFolderDataset(path, **case["kwargs"])
