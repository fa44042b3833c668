"""Data sets of latents: .npy files as the golden data read them, and what is no array of images."""

import hashlib
import io
import zipfile

import numpy as np
import pytest

from edm_fast.data import ImageFolderDataset
from edm_fast.errors import UserError
from helpers import golden_cases as g


@pytest.mark.parametrize("entry", g.edm2("encoders", lambda e: "loading" in e["config"]), ids=g.entry_id)
def test_golden_edm2_latent_dataset(entry):
    path, arrays = g.path(entry, entry["config"]["file"]), g.arrays(entry)
    for case in entry["config"]["loading"]:
        dataset = ImageFolderDataset(path, arrays=True, **{"use_labels": True, **case["kwargs"]})
        assert len(dataset) == case["length"] and dataset.num_channels == case["num_channels"]
        assert list(dataset.image_shape) == case["image_shape"] and dataset.label_dim == case["label_dim"]
        assert dataset.has_labels == case["has_labels"]
        for (image, label), item in zip((dataset[i] for i in range(len(dataset))), case["items"], strict=True):
            assert image.dtype == case["dtype"] and label.tolist() == item["label"]
            assert hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() == item["sha256"]
    members = {name.removeprefix("member/") for name in arrays if name.startswith("member/")}
    with zipfile.ZipFile(path) as archive:
        assert members == {name for name in archive.namelist() if name.endswith(".npy")}
        for name in members:
            np.testing.assert_array_equal(np.load(io.BytesIO(archive.read(name))), arrays[f"member/{name}"])


def test_arrays_count_only_if_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 4, 4), np.float32))
    with pytest.raises(UserError, match="left out: 1 NPY"):
        ImageFolderDataset(tmp_path)
    assert ImageFolderDataset(tmp_path, arrays=True).survey(2).startswith("1 image of 4x4 with 8 channels")
    for bad, message in ((np.zeros((4, 4)), "expected numbers of shape"), (np.array([[["x"]]]), "expected numbers")):
        np.save(tmp_path / "a.npy", bad)
        with pytest.raises(UserError, match=message):
            ImageFolderDataset(tmp_path, arrays=True)
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot read a.npy"):
        ImageFolderDataset(tmp_path, arrays=True)
