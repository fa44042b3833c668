"""Zips as people have them: what unpacks to the images of a data set is one; anything else is told in a line."""

import io
import json
import struct
import zipfile

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from edm_fast import cli
from edm_fast.data import ImageFolderDataset
from edm_fast.errors import UserError

NAMES = [f"{i // 2:05d}/img{i:08d}.png" for i in range(4)]
IMAGES = np.random.RandomState(0).randint(0, 256, (4, 8, 8, 3)).astype(np.uint8)
LABELS = [0, 1, 2, 1]


def png(image):
    data = io.BytesIO()
    PIL.Image.fromarray(image).save(data, "png")
    return data.getvalue()


def members(names=NAMES):
    """The files of the data set, by name."""
    files = {name: png(image) for name, image in zip(names, IMAGES, strict=True)}
    table = [[name, label] for name, label in zip(names, LABELS, strict=True)]
    return {**files, "dataset.json": json.dumps({"labels": table}).encode()}


def packed(files=None, file=None, write=zipfile.ZipFile.writestr, **options):
    """The bytes of a zip."""
    file = file or io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in (files or members()).items():
            write(archive, name, data)
    return file.getvalue()


class OneWay(io.BytesIO):
    """As a pipe: sizes and checksums follow the data, in descriptors."""

    def seekable(self):
        return False

    def seek(self, *args):
        raise OSError

    def tell(self):
        raise OSError


def as_zip64(archive, name, data):
    with archive.open(name, "w", force_zip64=True) as file:
        file.write(data)


def dated(archive, name, data):
    info = zipfile.ZipInfo(name, (2107, 12, 31, 23, 59, 58))
    info.extra = struct.pack("<HHBl", 0x5455, 5, 1, -1)  # as Info-ZIP dates a file before 1970
    archive.writestr(info, data)


def commented(archive, name, data):
    info = zipfile.ZipInfo(name)
    info.comment, info.create_system, info.external_attr = b"a comment \xff", 0, 0x20  # of Windows, without permissions
    archive.writestr(info, data)
    archive.comment = b"a comment of the archive \xff" * 1000


def with_folders(archive, name, data):
    folder, _, _ = name.rpartition("/")
    if folder and f"{folder}/" not in archive.namelist():
        archive.writestr(f"{folder}/", b"")
    archive.writestr(name, data)


GOOD = {
    "stored": packed(),
    "deflated": packed(compression=zipfile.ZIP_DEFLATED),
    "bzip2": packed(compression=zipfile.ZIP_BZIP2),
    "lzma": packed(compression=zipfile.ZIP_LZMA),
    "each in another way": packed(
        write=lambda archive, name, data: archive.writestr(name, data, (0, 8, 12, 14)[len(archive.namelist()) % 4])
    ),
    "zip64": packed(write=as_zip64),
    "from a pipe": packed(file=OneWay()),
    "from a pipe, deflated": packed(file=OneWay(), compression=zipfile.ZIP_DEFLATED),
    "with folders of their own": packed(write=with_folders),
    "comments": packed(write=commented),
    "dates nobody has": packed(write=dated),
    "unpacks itself": b"#!/bin/sh\nexec unzip $0\n" + packed(),
    "something behind it": packed() + b"\0" * 100,
    "labels first": packed(dict(reversed(members().items()))),
    "capitals": packed(members([name.upper() for name in NAMES])),
    "blanks and quotes": packed(members([f'a b/it\'s "{i}" & co.png' for i in range(4)])),
    "other scripts": packed(members([f"сорт/猫-ü-{i}.png" for i in range(4)])),
    "deep": packed(members(["a/" * 60 + f"{i}.png" for i in range(4)])),
    "long names": packed(members(["a" * 250 + f"{i}.png" for i in range(4)])),
    "an archive inside": packed({**members(), "more.zip": packed()}),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("suffix", [".zip", ".ZIP"])
def test_read(name, suffix, tmp_path):
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(GOOD[name])
    result = CliRunner().invoke(cli.main, ["dataset", "check", str(path)])
    assert result.exit_code == 0 and "8x8" in result.output and "problem:" not in result.output, result.output
    convert = ["dataset", f"--source={path}", f"--dest={tmp_path / 'plain.zip'}"]
    assert CliRunner().invoke(cli.main, convert, catch_exceptions=False).exit_code == 0
    for source in (path, tmp_path / "plain.zip"):
        data = ImageFolderDataset(source, use_labels=True)
        assert len(data) == 4 and data.label_dim == 3
        for image, label, (found, onehot) in zip(IMAGES, LABELS, data, strict=False):
            np.testing.assert_array_equal(found, image.transpose(2, 0, 1))
            assert onehot.tolist() == np.eye(3)[label].tolist()


def patched(data, old, new):
    assert old in data
    return data.replace(old, new)


def flagged(data, bit, method=None):
    """The first member's flags, and method, changed in both of its headers."""
    data = bytearray(data)
    for start, offset in ((data.index(b"PK\x03\x04"), 6), (data.index(b"PK\x01\x02"), 8)):
        data[start + offset] |= bit
        if method is not None:
            data[start + offset + 2 : start + offset + 4] = struct.pack("<H", method)
    return bytes(data)


FIRST = NAMES[0].encode()
BAD = {
    "nothing": b"",
    "an empty archive": b"PK\x05\x06".ljust(22, b"\0"),
    "folders alone": packed({"a/": b"", "b/": b""}),
    "no images": packed({"readme.txt": b"text"}),
    "cut": packed()[:-40],
    "the end alone": packed()[-400:],
    "text": b"not a zip at all" * 9,
    "a tar": b"a.png".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 800,
    "encrypted": flagged(packed(), 1),
    "packed in a way nobody knows": flagged(packed(), 0, 99),
    "a name that differs inside": patched(
        packed(), b"PK\x03\x04" + packed()[4:30] + FIRST, b"PK\x03\x04" + packed()[4:30] + b"x" * len(FIRST)
    ),
    "a wrong checksum": patched(packed(), png(IMAGES[0])[-60:-50], b"0123456789"),
    "a header overwritten": b"XX" + packed()[2:],
    "a text as an image": packed({**members(), NAMES[0]: b"text"}),
    "an image cut short": packed({**members(), NAMES[0]: png(IMAGES[0])[:60]}),
    "images of two sizes": packed({**members(), NAMES[3]: png(np.zeros((16, 16, 3), np.uint8))}),
    "labels cut short": packed({**members(), "dataset.json": b'{"labels": [["'}),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name, tmp_path):
    path = tmp_path / "odd.zip"
    path.write_bytes(BAD[name])
    checked = CliRunner().invoke(cli.main, ["dataset", "check", str(path)])
    assert checked.exit_code == 2 and checked.output, name
    convert = ["dataset", f"--source={path}", f"--dest={tmp_path / 'plain.zip'}"]
    converted = CliRunner().invoke(cli.main, convert)
    assert converted.exit_code == 2 and converted.stderr.startswith("Error: ") and converted.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["odd.zip"]
    with pytest.raises(UserError) as caught:
        data = ImageFolderDataset(path, use_labels=True)
        for i in range(len(data)):
            data[i]
    assert "\n" not in str(caught.value)
