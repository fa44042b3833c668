"""Data sets that are damaged, odd, or read by several processes."""

import io
import json
import multiprocessing
import os
import pickle
import struct
import zipfile

import numpy as np
import PIL.Image
import pytest

from edm_fast.data import ImageFolderDataset
from edm_fast.errors import UserError, UserOSError
from helpers import tiny_training as tiny


def png(image):
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def gray(size=(4, 4), value=7):
    return png(PIL.Image.new("L", size, value))


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data if isinstance(data, bytes) else json.dumps(data))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.zip"


def test_folder_equals_zip(tmp_path, path):
    tiny.write_dataset(path, channels=3)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder" / ".")
    a, b = (ImageFolderDataset(p, use_labels=True, xflip=True) for p in (path, tmp_path / "folder"))
    assert len(a) == len(b) == 24
    for i in range(24):
        assert all(np.array_equal(x, y) for x, y in zip(a[i], b[i], strict=True))


def test_flipped_half_and_writable_copies(path):
    data = ImageFolderDataset(tiny.write_dataset(path, count=3), xflip=True, cache=True)
    assert np.array_equal(data[3][0], data[0][0][:, :, ::-1])
    data[0][0].fill(0)  # a copy: the cache keeps the image
    assert data[0][0].any()


@pytest.mark.parametrize("mode, channels", [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("P", 3), ("1", 1)])
def test_channel_counts(path, mode, channels):
    image = PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert(mode)
    data = ImageFolderDataset(make_zip(path, {"a.png": png(image)}))
    assert data.image_shape == [channels, 4, 4] and data[0][0].dtype == np.uint8
    if mode == "1":
        assert set(np.unique(data[0][0])) <= {0, 255}


def test_forked_processes_read_one_archive(path):
    """They would share the file position of a common handle."""
    data = ImageFolderDataset(tiny.write_dataset(path, count=150, size=24))
    want = [data[i][0].tobytes() for i in range(len(data))]  # the handle is open from here on
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def read():
        try:
            queue.put([data[i][0].tobytes() for i in range(len(data))] == want)
        except Exception as error:
            queue.put(error)

    processes = [context.Process(target=read) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [True, True, True]
    for process in processes:
        process.join()


def test_pickling_drops_handles_labels_and_cache(path):
    data = ImageFolderDataset(tiny.write_dataset(path), use_labels=True, cache=True)
    label, _ = data.get_label(0), [data[i] for i in range(len(data))]
    blob = pickle.dumps(data)
    other = pickle.loads(blob)
    assert other._all_labels is None and other._cache == {} and other._source._handle is None
    assert np.array_equal(other.get_label(0), label) and np.array_equal(other[5][0], data[5][0])


def labels(value):
    return {"a.png": gray(), "b.png": gray(), "dataset.json": value}


@pytest.mark.parametrize(
    "members, kwargs, message",
    [
        ({"readme.txt": b"hello"}, {}, "no image files"),
        ({"a.png": b"not an image"}, {}, "cannot read image a.png"),
        ({"a.png": gray()[:40]}, {}, "cannot read image a.png"),
        ({"a.png": png(PIL.Image.new("I;16", (4, 4)))}, {}, "8 bits"),
        ({"a.png": gray()}, {"resolution": 8}, "4x4; expected 8x8"),
        (labels({"labels": [["a.png", 0]]}), {}, "1 of 2 images without a label: b.png"),
        (labels({"labels": [["a.png", 0], ["b.png", -1]]}), {}, "class label -1"),
        (labels({"labels": [["a.png", 0], ["b.png", [1.0]]]}), {}, "integers and vectors"),
        (labels({"labels": [["a.png", [1]], ["b.png", [1, 2]]]}), {}, "vectors of 1 number and"),
        (labels({"labels": [["a.png", "cat"], ["b.png", "dog"]]}), {}, "that are texts"),
        (labels({"labels": 5}), {}, "is damaged"),
        (labels({"classes": []}), {}, "is damaged"),
        (labels(b"{"), {}, "is damaged"),
        (labels(b"[" * 100_000), {}, "is damaged"),
        (labels({"labels": [["a.png", 0], ["b.png", 10**30]]}), {}, "class label above"),
        (labels({"labels": [["a.png", [0.5]], ["b.png", [float("nan")]]]}), {}, "not finite"),
        (labels({"labels": [["a.png", [0.5]], ["b.png", [10**400]]]}), {}, "not finite"),
    ],
)
def test_errors_are_one_line(path, members, kwargs, message):
    make_zip(path, members)
    with pytest.raises(UserOSError, match=message) as caught:
        ImageFolderDataset(path, use_labels=True, **kwargs).has_labels  # noqa: B018
    assert "\n" not in str(caught.value)


def test_images_of_several_shapes(path):
    data = ImageFolderDataset(make_zip(path, {"a.png": gray(), "b.png": gray((5, 4))}))
    data[0]
    with pytest.raises(UserOSError, match="b.png .*expected \\[1, 4, 4\\]"):
        data[1]


def test_resolution_needs_squares(path):
    data = ImageFolderDataset(make_zip(path, {"a.png": gray((5, 4))}))
    assert data.image_shape == [1, 4, 5]
    with pytest.raises(UserError, match="5x4; expected squares"):
        data.resolution  # noqa: B018


@pytest.mark.parametrize("cut", [10, 100, -30])
def test_truncated_archive(path, cut):
    path.write_bytes(tiny.write_dataset(path).read_bytes()[:cut])
    with pytest.raises(UserOSError, match="not a readable zip"):
        ImageFolderDataset(path)


def damage(path, name):
    """Flip bits in the middle of a member's data."""
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    start = info.header_offset + 30 + len(name) + info.compress_size // 2
    raw[start : start + 8] = bytes(b ^ 0xFF for b in raw[start : start + 8])
    path.write_bytes(raw)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_damaged_member(path, method):
    pixels = np.random.RandomState(0).randint(0, 4, [32, 32], dtype=np.uint8)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", gray())
        data = io.BytesIO()
        PIL.Image.fromarray(pixels).save(data, format="BMP")
        archive.writestr("b.bmp", data.getvalue())
    damage(path, "b.bmp")
    source = ImageFolderDataset(path)._source
    with pytest.raises(UserOSError, match="b.bmp"):
        source.read("b.bmp")


@pytest.mark.parametrize(
    "error", [struct.error("short"), NotImplementedError("BLP"), RuntimeError("AVIF"), IndexError()]
)
def test_whatever_a_decoder_raises_is_one_line(path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    make_zip(path, {"a.png": gray()})
    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(UserOSError, match="cannot read image a.png"):
        ImageFolderDataset(path)


def test_missing_or_unknown_source(tmp_path):
    for name in ("nowhere", "nowhere.zip"):
        with pytest.raises(UserOSError, match="does not exist"):
            ImageFolderDataset(tmp_path / name)
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(UserOSError, match="neither a folder nor a .zip"):
        ImageFolderDataset(tmp_path / "file.bin")
    assert os.path.exists(tmp_path / "file.bin")
