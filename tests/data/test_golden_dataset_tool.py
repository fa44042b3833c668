"""The dataset conversion against recorded ones: names, modes, sizes, labels, pixels, and the errors."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from edm_fast.data.convert import convert
from edm_fast.errors import UserError
from helpers import golden_cases as g

ENTRIES = g.entries("dataset_tool")


def cases(key):
    """(entry, case) of every list `key` in every entry, with ids."""
    found = [(entry, case) for entry in ENTRIES for case in entry["config"].get(key, [])]
    return {"argvalues": found, "ids": [f"{entry['id']}-{case['name']}" for entry, case in found]}


def prepare(entry, folder):
    """The entry's archives in `folder`, as they are and unpacked."""
    for archive in g.path(entry).parent.glob("*.zip"):
        (folder / archive.name).write_bytes(archive.read_bytes())
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder / archive.stem)


def run(folder, options):
    options = dict(options)
    if options.get("resolution"):
        options["resolution"] = tuple(options["resolution"])
    return convert(**{**options, "source": folder / options["source"], "dest": folder / options["dest"]})


def members(path):
    """{name: bytes} of a dataset in a folder or zip, and whether all members are stored (None for a folder)."""
    if path.is_dir():
        return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}, None
    with zipfile.ZipFile(path) as file:
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        return {name: file.read(name) for name in file.namelist()}, stored


def check_result(entry, case, dest):
    got, stored = members(dest)
    assert case.get("all_members_stored", stored) == stored
    table = json.loads(got.pop("dataset.json"))
    table.pop("classes", None)  # the names of class folders, which the published tool does not keep
    assert table == case["metadata"]
    assert sorted(got) == sorted(case["files"])
    arrays = g.arrays(entry)
    for name, want in case["files"].items():
        image = PIL.Image.open(io.BytesIO(got[name]))
        assert (image.format, image.mode, list(image.size)) == ("PNG", want["mode"], want["size"]), name
        pixels = np.asarray(image)
        recorded = arrays.get(f"{case['name']}/{name}")
        if recorded is not None:
            assert pixels.shape == recorded.shape
            gap = np.abs(pixels.astype(int) - recorded.astype(int)).max()
            assert gap <= entry["tolerance"].get("pixels_atol", 0), f"{name}: {gap} levels"
        else:
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == want["sha256"], name


@pytest.mark.parametrize("entry, case", **cases("runs"))
def test_golden_run(entry, case, tmp_path):
    prepare(entry, tmp_path)
    run(tmp_path, case["options"])
    check_result(entry, case, tmp_path / case["options"]["dest"])


@pytest.mark.parametrize("entry, case", **cases("errors"))
def test_golden_error(entry, case, tmp_path):
    prepare(entry, tmp_path)
    dest = tmp_path / case["options"]["dest"]
    if dest.suffix != ".zip":  # a folder can only be refused for what is in it
        dest.mkdir()
        (dest / "something").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        run(tmp_path, case["options"])
    assert sorted(tmp_path.rglob("*")) == before


def make_cifar10(path, seed):
    data = np.random.RandomState(seed).randint(0, 256, (50000, 3072)).astype(np.uint8)
    labels = np.random.RandomState(seed + 1).randint(0, 10, 50000)
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        for number, rows in enumerate(np.array_split(np.arange(50000), 5), 1):
            batch = pickle.dumps({"data": data[rows], "labels": labels[rows].tolist()}, protocol=2 + number % 3)
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            info.size = len(batch)
            archive.addfile(info, io.BytesIO(batch))


def make_mnist(path, seed):
    images = np.random.RandomState(seed + 2).randint(0, 256, (60000, 28, 28)).astype(np.uint8)
    labels = np.random.RandomState(seed + 3).randint(0, 10, 60000).astype(np.uint8)
    head = np.array([2051, 60000, 28, 28], ">i4").tobytes()
    path.write_bytes(gzip.compress(head + images.tobytes(), 0))
    head = np.array([2049, 60000], ">i4").tobytes()
    path.with_name("train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes(), 0))


@pytest.mark.parametrize("entry, case", **cases("special"))
def test_golden_special(entry, case, tmp_path: Path):
    # which of the two named archives a case is about shows in its images: RGB as CIFAR-10, gray as MNIST
    modes = {want["mode"] for want in case["files"].values()}
    name, make = {
        "RGB": ("cifar-10-python.tar.gz", make_cifar10),
        "L": ("train-images-idx3-ubyte.gz", make_mnist),
    }[modes.pop()]
    make(tmp_path / name, case["numpy_seed"])
    convert(tmp_path / name, tmp_path / "out.zip", max_images=len(case["files"]))
    check_result(entry, case, tmp_path / "out.zip")
