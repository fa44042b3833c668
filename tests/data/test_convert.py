"""Conversion: sources, transforms, and that nothing half-written stays behind."""

import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest

from edm_fast.data import ImageFolderDataset, _cifar, _output, _sources
from edm_fast.data._transforms import center_crop, center_crop_dhariwal, center_crop_wide, transform_by_name
from edm_fast.data.convert import convert, write_dataset
from edm_fast.errors import UserError


def picture(height=8, width=8, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def save_pictures(folder, names, **kwargs):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture(seed=seed, **kwargs)).save(folder / name)


def labels_of(path):
    if path.is_dir():
        return json.loads((path / "dataset.json").read_text())["labels"]
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))["labels"]


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dest", ["new.zip", "deep/new.zip", "folder", "deep/folder"])
def test_written_set_loads_as_dataset(tmp_path, dest):
    images = [picture(seed=i) for i in range(4)]
    assert write_dataset(tmp_path / dest, zip(images, [2, 0, 1, 1], strict=True)) == 4
    dataset = ImageFolderDataset(tmp_path / dest, use_labels=True)
    assert len(dataset) == 4 and dataset.label_dim == 3
    for i, image in enumerate(images):
        np.testing.assert_array_equal(dataset[i][0], image.transpose(2, 0, 1))
        assert dataset[i][1].argmax() == [2, 0, 1, 1][i]


def test_names_split_the_eight_digits_and_skipped_images_leave_gaps(tmp_path):
    write_dataset(tmp_path / "a", ((picture() if i in (0, 1001) else None, None) for i in range(1002)))
    assert [n for n, _ in [("00000/img00000000.png", 0), ("00001/img00001001.png", 0)]] == sorted(
        p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.png")
    )
    assert labels_of(tmp_path / "a") is None


def test_one_missing_label_makes_all_null(tmp_path):
    write_dataset(tmp_path / "a.zip", [(picture(), 1), (picture(), None)])
    assert labels_of(tmp_path / "a.zip") is None


def test_equal_input_gives_equal_zip_bytes_and_stored_members(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_dataset(tmp_path / name, [(picture(), 0)])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[-1] == "dataset.json"


def test_existing_zip_is_replaced_and_existing_empty_folder_is_filled(tmp_path, monkeypatch):
    write_dataset(tmp_path / "a.zip", [(picture(), 0)] * 2)
    write_dataset(tmp_path / "a.zip", [(picture(), 0)])
    assert len(labels_of(tmp_path / "a.zip")) == 1
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="exists and is a text file; expected a new name, or a zip archive to replace"):
        write_dataset(tmp_path / "b.zip", [(picture(), 0)])
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")  # the current folder cannot be replaced, only filled
    write_dataset(".", [(picture(), 0)])
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["00000", "dataset.json"]


@pytest.mark.parametrize(
    "images, message",
    [
        ([picture(8, 16)], "images are 16x8, not square"),
        ([picture(channels=4)], "4 channels"),
        ([picture(12, 12)], "power of two"),
        ([picture(), picture(16, 16)], "image 1: an image of 16x16 RGB follows ones of 8x8 RGB"),
        ([picture(), picture(channels=1)], "8x8 gray follows"),
        ([], "no image to write"),
        ([None], "no image to write"),
    ],
)
@pytest.mark.parametrize("dest", ["x.zip", "x"])
def test_bad_images_leave_nothing(tmp_path, images, message, dest):
    with pytest.raises(UserError, match=message):
        write_dataset(tmp_path / dest, [(image, None) for image in images])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dest", ["x.zip", "x", "there"])
def test_full_disk_leaves_nothing(tmp_path, monkeypatch, dest):
    (tmp_path / "there").mkdir()
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    owner, name = (zipfile.ZipFile, "writestr") if dest.endswith(".zip") else (_output.Path, "write_bytes")
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tmp_path / dest, [(picture(), None)] * 5)
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and list((tmp_path / "there").iterdir()) == []


def test_bad_destinations(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for dest, message in [("file", "is a file"), ("folder.zip", "is a folder"), ("full", "not empty")]:
        with pytest.raises(UserError, match=message):
            write_dataset(tmp_path / dest, [(picture(), None)])
    for dest in ("new.tar", "new.TAR.GZ"):
        with pytest.raises(UserError, match="would be a folder that is named .*; expected a folder or a name that"):
            write_dataset(tmp_path / dest, [(picture(), None)])
    write_dataset(tmp_path / "new.v2", [(picture(), None)])
    reader, writer = os.pipe()  # as /dev/stdout before a pipe
    with pytest.raises(UserError, match="is a file; expected a folder"):
        write_dataset(f"/dev/fd/{writer}", [(picture(), None)])
    os.close(reader)
    os.close(writer)
    with pytest.raises(UserError, match="empty text"):
        write_dataset("", [(picture(), None)])


@pytest.mark.parametrize("dest", ["a.zip", "link.zip", "hard.zip", "./a.zip", "chain.zip"])
def test_the_source_is_never_the_destination(tmp_path, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    write_dataset("a.zip", [(picture(), 0)])
    (tmp_path / "link.zip").symlink_to("a.zip")
    (tmp_path / "chain.zip").symlink_to("link.zip")
    (tmp_path / "hard.zip").hardlink_to("a.zip")
    before = (tmp_path / "a.zip").read_bytes()
    for source in ("a.zip", "link.zip"):
        with pytest.raises(UserError, match="is the source"):
            convert(source, dest)
    assert (tmp_path / "a.zip").read_bytes() == before and (tmp_path / "link.zip").is_symlink()


@pytest.mark.parametrize("dest", ["s", "s/new", "s/a/o.zip", "link/o.zip", "s/../s/o.zip"])
def test_nothing_is_written_into_the_source(tmp_path, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "s", ["a/0.png"])
    (tmp_path / "link").symlink_to("s")
    with pytest.raises(UserError, match="is the source|not empty"):
        convert("s", dest)
    assert [p.name for p in (tmp_path / "s").rglob("*")] == ["a", "0.png"]


def test_links_are_kept_and_other_kinds_of_files_too(tmp_path):
    save_pictures(tmp_path / "s", ["0.png"])
    said = []
    for name, target in [("link.zip", "data"), ("folder", "deep")]:
        (tmp_path / name).symlink_to(target)
        convert(tmp_path / "s", tmp_path / name, report=said.append)
        assert (tmp_path / name).is_symlink() and (tmp_path / target).exists()
    assert not [line for line in said if "replaced" in line]
    convert(tmp_path / "s", tmp_path / "link.zip", report=said.append)
    assert said[-1] == f"{tmp_path / 'link.zip'} was there and has been replaced" and (tmp_path / "data").is_file()
    (tmp_path / "text.zip").write_text("text")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("text.zip", "pipe.zip"):
        with pytest.raises(UserError, match=name):
            convert(tmp_path / "s", tmp_path / name)
    assert (tmp_path / "text.zip").read_text() == "text" and (tmp_path / "pipe.zip").is_fifo()


# --- folders and zips -------------------------------------------------------------------------------------------------


def test_folder_order_is_by_path_component_and_top_folders_are_classes(tmp_path):
    # as text "a-b/..." comes before "a/...", as path components after
    save_pictures(tmp_path / "s", ["a-b/0.png", "a/z.png", "a/b/0.png", "root.PNG"])
    (tmp_path / "s" / "notes.txt").touch()
    count, items, _ = _sources.open_source(tmp_path / "s")
    images, labels = zip(*items, strict=True)
    assert count == 4 and list(labels) == [1, 1, 2, 0]
    for image, seed in zip(images, [2, 1, 0, 3], strict=True):
        np.testing.assert_array_equal(image, picture(seed=seed))


def test_one_top_folder_gives_no_classes(tmp_path):
    save_pictures(tmp_path, ["a/0.png", "a/1.png"])
    assert [label for _, label in _sources.open_source(tmp_path)[1]] == [None, None]


def test_labels_of_dataset_json_win_and_max_images_takes_the_first(tmp_path):
    save_pictures(tmp_path / "s", ["a/0.png", "b/0.png", "c/0.png"])
    (tmp_path / "s" / "dataset.json").write_text(json.dumps({"labels": [["a/0.png", 7], ["b/0.png", 5]]}))
    assert convert(tmp_path / "s", tmp_path / "o.zip", max_images=2) == 2
    assert labels_of(tmp_path / "o.zip") == [["00000/img00000000.png", 7], ["00000/img00000001.png", 5]]
    convert(tmp_path / "s", tmp_path / "p.zip")
    assert labels_of(tmp_path / "p.zip") is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"labels": 3}', '{"labels": [3]}', '{"labels": [["a"]]}', '{"labels": [[["a"], 1, 2]]}']
)
def test_damaged_labels(tmp_path, text):
    save_pictures(tmp_path / "s", ["0.png"])
    (tmp_path / "s" / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="dataset.json"):
        convert(tmp_path / "s", tmp_path / "o.zip")
    assert not (tmp_path / "o.zip").exists()


def test_corrupt_sources(tmp_path):
    save_pictures(tmp_path / "s", ["0.png", "1.png"])
    data = (tmp_path / "s" / "1.png").read_bytes()
    (tmp_path / "s" / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot read image .*1\.png"):
        convert(tmp_path / "s", tmp_path / "o.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UserError, match="expected an undamaged zip"):
        convert(tmp_path / "bad.zip", tmp_path / "o.zip")
    write_dataset(tmp_path / "good.zip", [(picture(), None)])
    damaged = bytearray((tmp_path / "good.zip").read_bytes())
    damaged[80] ^= 255
    (tmp_path / "crc.zip").write_bytes(damaged)
    with pytest.raises(UserError, match="cannot read image 00000/img00000000.png.*Bad CRC"):
        convert(tmp_path / "crc.zip", tmp_path / "o.zip")
    (tmp_path / "odd.rar").touch()
    with pytest.raises(UserError, match="no known kind"):
        convert(tmp_path / "odd.rar", tmp_path / "o.zip")
    with pytest.raises(UserError, match="max-images is 0"):
        convert(tmp_path / "good.zip", tmp_path / "o.zip", max_images=0)
    assert not (tmp_path / "o.zip").exists()


def test_image_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 16)
    save_pictures(tmp_path / "s", ["0.png"])
    with pytest.raises(UserError, match="cannot read image"):
        convert(tmp_path / "s", tmp_path / "o.zip")


# --- transforms -------------------------------------------------------------------------------------------------------


def test_center_crop_takes_the_middle_square():
    image = picture(6, 11)
    np.testing.assert_array_equal(center_crop(image, 6, 6), image[:, 2:8])
    gray = picture(9, 4, channels=1)
    np.testing.assert_array_equal(center_crop(gray, 4, 4), np.stack([gray[2:6]] * 3, axis=2))


def test_center_crop_wide_pastes_on_black():
    image = picture(16, 16)
    wide = center_crop_wide(image, 16, 10)
    assert wide.shape == (16, 16, 3) and not wide[:3].any() and not wide[13:].any() and wide[3:13].any()
    assert center_crop_wide(picture(16, 15), 16, 8) is None  # too narrow
    assert center_crop_wide(picture(8, 32), 16, 8) is None  # ch = 4 rows are too few


def test_center_crop_dhariwal_halves_then_resizes():
    """Of an image constant in blocks: the means of 2x2 are exact, and the bicubic filter is not reached."""
    blocks = picture(8, 16)
    large = blocks.repeat(4, axis=0).repeat(4, axis=1)  # 32 x 64: twice halved to 8 x 16
    np.testing.assert_array_equal(center_crop_dhariwal(large, 8, 8), blocks[:, 4:12])
    odd = center_crop_dhariwal(picture(50, 31), 12, 12)
    halved = PIL.Image.fromarray(picture(50, 31)).resize((15, 25), PIL.Image.Resampling.BOX)
    small = np.asarray(halved.resize((12, 20), PIL.Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(odd, small[4:16])


def test_bad_transforms():
    for name, resolution, message in [
        ("crop", (8, 8), "unknown transform"),
        ("center-crop", None, "needs a resolution"),
        (None, (0, 8), "from 1 to 8192"),
        (None, (100000, 100000), "from 1 to 8192"),
        ("center-crop-wide", (8, 16), "not wide"),
        ("center-crop-dhariwal", (16, 8), "equal to the height"),
    ]:
        with pytest.raises(UserError, match=message):
            transform_by_name(name, resolution)


# --- CIFAR-10, MNIST, LSUN --------------------------------------------------------------------------------------------


def save_cifar(path, batches):
    with tarfile.open(path, "w:gz") as archive:
        for number, data in enumerate(batches, 1):
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def batch(rows=2, seed=0, labels=None, fortran=False, protocol=2):
    data = np.random.RandomState(seed).randint(0, 256, (rows, 3072)).astype(np.uint8)
    data = np.asfortranarray(data) if fortran else data
    return pickle.dumps({"data": data, "labels": list(range(rows)) if labels is None else labels}, protocol)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(_cifar, "TRAIN_IMAGES", 10)
    return tmp_path / "cifar-10-python.tar.gz"


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("fortran", [False, True])
def test_cifar10(cifar, tmp_path, protocol, fortran):
    save_cifar(cifar, [batch(seed=i, fortran=fortran, protocol=protocol) for i in range(5)])
    assert convert(cifar, tmp_path / "o.zip", max_images=3) == 3
    dataset = ImageFolderDataset(tmp_path / "o.zip", use_labels=True)
    want = pickle.loads(batch(seed=1))["data"][0].reshape(3, 32, 32)
    np.testing.assert_array_equal(dataset[2][0], want)
    assert labels_of(tmp_path / "o.zip")[1][1] == 1


def test_python_2_pickle_of_cifar10():
    # protocol 2 as Python 2 wrote it: the array's bytes are text
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x01M\x00\x0c\x86" + dtype
    array += b"\x89T\x00\x0c\x00\x00" + bytes(i % 256 for i in range(3072)) + b"tb"
    data = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu."
    images, labels = _cifar._read_batch(data, "batch")
    assert images.reshape(-1).tolist() == [i % 256 for i in range(3072)] and labels.tolist() == [7]


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("created-by-the-pickle",)


def test_cifar10_runs_nothing_and_refuses_what_it_does_not_know(cifar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = [batch()] * 4
    floats = pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]})
    codec = b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR."
    for bad, message in [
        (pickle.dumps(Evil()), "mkdir"),
        (batch()[:-9], "cannot read"),
        (floats, "'f8' is not allowed"),
        (codec, "rot13"),
        (pickle.dumps([1, 2]), "cannot read"),
        (batch(labels=[1]), "other shapes"),
        (batch(labels=["a", "b"]), "other shapes"),
        (batch(rows=3), "holds 11 training images"),
    ]:
        save_cifar(cifar, [*good, bad])
        with pytest.raises(UserError, match=message):
            convert(cifar, tmp_path / "o.zip")
    save_cifar(cifar, good)
    with pytest.raises(UserError, match="data_batch_5"):
        convert(cifar, tmp_path / "o.zip")
    cifar.write_bytes(cifar.read_bytes()[:300])
    with pytest.raises(UserError, match="expected the python version"):
        convert(cifar, tmp_path / "o.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == [cifar.name]


def idx(numbers, data):
    return gzip.compress(np.array(numbers, ">i4").tobytes() + data)


def test_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(_sources, "MNIST_TRAIN_IMAGES", 3)
    images = picture(3 * 28, 28, channels=1).reshape(3, 28, 28)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(idx([2051, 3, 28, 28], images.tobytes()))
    with pytest.raises(UserError, match="train-labels-idx1-ubyte.gz; expected it beside"):
        convert(path, tmp_path / "o.zip")
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(idx([2049, 3], bytes([5, 0, 9])))
    convert(path, tmp_path / "o.zip")
    dataset = ImageFolderDataset(tmp_path / "o.zip", use_labels=True)
    assert dataset.image_shape == [1, 32, 32] and dataset.label_dim == 10 and dataset[0][1].argmax() == 5
    np.testing.assert_array_equal(dataset[1][0][0], np.pad(images[1], 2))
    for bad in [
        idx([2049, 4], bytes(4)),
        idx([2049, 3], bytes(2)),
        idx([2051, 3], bytes(3)),
        b"text",
        gzip.compress(b""),
    ]:
        labels.write_bytes(bad)
        with pytest.raises(UserError):
            convert(path, tmp_path / "p.zip")
    labels.write_bytes(labels.read_bytes()[:-4])
    with pytest.raises(UserError, match="expected a gzipped idx file"):
        convert(path, tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()


def test_lsun_lmdb(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb")
    source = tmp_path / "church_lmdb"
    with lmdb.open(str(source), map_size=1 << 20) as env, env.begin(write=True) as transaction:
        for key, seed in [(b"b", 1), (b"a", 0), (b"d", 2)]:
            buffer = io.BytesIO()
            PIL.Image.fromarray(picture(seed=seed)).save(buffer, "png")
            transaction.put(key, buffer.getvalue())
        transaction.put(b"c", b"not an image")
    said = []
    assert convert(source, tmp_path / "o.zip", report=said.append) == 3
    assert len(said) == 1 and "b'c'" in said[0]
    dataset = ImageFolderDataset(tmp_path / "o.zip")
    for i in range(3):
        np.testing.assert_array_equal(dataset[i][0], picture(seed=i).transpose(2, 0, 1))
    assert convert(source, tmp_path / "p.zip", max_images=2) == 2
    (tmp_path / "data").mkdir()
    source.rename(tmp_path / "data" / "church")
    source.symlink_to(tmp_path / "data" / "church")  # the name given decides
    assert convert(source, tmp_path / "r.zip", report=said.append) == 3

    class Cv2:
        class error(Exception): ...  # noqa: N801

        @staticmethod
        def imdecode(buffer, flags):
            raise Cv2.error("(-215:Assertion failed) !buf.empty()")

    monkeypatch.setitem(sys.modules, "cv2", Cv2)
    with pytest.raises(UserError, match="no image to write"):
        convert(source, tmp_path / "s.zip", report=said.append)
    (tmp_path / "empty_lmdb").mkdir()
    with pytest.raises(UserError, match="expected an lmdb folder"):
        convert(tmp_path / "empty_lmdb", tmp_path / "q.zip")


def test_lsun_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "x_lmdb").mkdir()
    with pytest.raises(UserError, match="needs the package lmdb"):
        convert(tmp_path / "x_lmdb", tmp_path / "o.zip")


def test_opencv_is_used_where_it_is(monkeypatch):
    class Cv2:
        @staticmethod
        def imdecode(buffer, flags):
            return picture() if bytes(buffer) == b"known" else None

    monkeypatch.setitem(sys.modules, "cv2", Cv2)
    np.testing.assert_array_equal(_sources._decode_lmdb(b"known"), picture()[:, :, ::-1])
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture(seed=3)).save(buffer, "png")
    np.testing.assert_array_equal(_sources._decode_lmdb(buffer.getvalue()), picture(seed=3))


def test_a_broken_opencv_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise RuntimeError('libGL.so.1')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture()).save(buffer, "png")
    np.testing.assert_array_equal(_sources._decode_lmdb(buffer.getvalue()), picture())
