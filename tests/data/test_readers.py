"""One decoder, one listing, one reader of labels: convert, check, train and fid say the same of the same files."""

import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from edm_fast.data import ImageFolderDataset, _sources
from edm_fast.data.convert import convert
from edm_fast.errors import UserError
from edm_fast.pictures import decode
from edm_fast.sampling import save_grid
from helpers import readers
from helpers.readers import GOOD, below, make_folder, make_zip, picture

ROOT = Path(__file__).parents[2]
FAULTS = ROOT.parent / "shared" / "faults"
ALL = ("convert", "check", "train", "fid")


def test_one_place_opens_pictures_and_one_reads_labels():
    text = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "edm_fast").rglob("*.py")}
    assert [name for name, code in text.items() if "Image.open(" in code] == ["edm_fast/pictures.py"]
    assert [name for name, code in text.items() if "/data/" in name and "json.load" in code] == [
        "edm_fast/data/_labels.py"
    ]
    assert [name for name, code in text.items() if "zipfile.ZipFile(self" in code] == ["edm_fast/data/_listing.py"]
    assert not [name for name, code in text.items() if "os.walk(" in code]


# --- pictures ---------------------------------------------------------------------------------------------------------


def deep(mode, format, dtype=np.uint16, **options):
    data = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8), 5, dtype)).convert(mode).save(data, format, **options)
    return data.getvalue()


def rgb16():
    """A dark PNG of 16 bits per channel, whose upper bytes are all 0."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\0\x90" * 24) * 8)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def exif(orientation):
    block = PIL.Image.Exif()
    block[274] = orientation
    return block


def frames(format):
    return picture(format=format, save_all=True, append_images=[PIL.Image.new("RGB", (8, 8))])


DEEP = "more than 8 bits per channel"
UNREAD = "empty, or not in a format that is read"


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("z.png", picture(mode="RGBA"), "4 channels|RGBA unlike the rest|shape \\[4, 8, 8\\]"),
        ("z.png", picture(mode="LA"), "2 channels|gray with alpha unlike|shape \\[2, 8, 8\\]"),
        ("z.png", rgb16(), DEEP),
        ("z.png", deep("I;16", "png"), DEEP),
        ("z.tif", deep("I;16", "tiff"), DEEP),
        ("z.tif", deep("I;16", "tiff", compression="tiff_lzw"), DEEP),
        ("z.tif", deep("F", "tiff", np.float32), DEEP),
        ("z.tif", deep("I", "tiff", np.int32), DEEP),
        ("z.ppm", b"P6 8 8 65535\n" + bytes(384), DEEP),
        ("z.pgm", b"P5 8 8 1023\n" + bytes(128), DEEP),
        ("z.png", b"", UNREAD),
        ("z.png", b"<!DOCTYPE html><html>", UNREAD),
        ("z.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", UNREAD),
        ("z.jpg", b"%PDF-1.4\n", UNREAD),
        ("z.png", picture(16, 16), "16x16 RGB|shape \\[3, 16, 16\\]"),
        ("z.png", picture(mode="L"), "8x8 gray|shape \\[1, 8, 8\\]"),
    ],
)
def test_pictures_that_all_refuse(tmp_path, name, data, message):
    for reader, said in readers.read(make_folder(tmp_path / "f", {**GOOD, name: data}), tmp_path / "o.zip").items():
        assert said.startswith("refused: ") and re.search(message, said), (reader, said)


@pytest.mark.parametrize(
    "name, data",
    [
        ("z.jpg", picture(mode="CMYK", format="jpeg")),
        ("z.tif", picture(mode="CMYK", format="tiff")),
        ("z.tif", picture(mode="YCbCr", format="tiff")),
        ("z.tif", picture(mode="LAB", format="tiff")),
        ("z.png", picture(mode="P")),
        ("z.png", picture(format="jpeg")),  # the content counts, not the name
        ("z.PNG", picture()),
        ("z.jfif", picture(format="jpeg")),
        ("z.jpg", picture(format="mpo", save_all=True, append_images=[PIL.Image.new("RGB", (4, 4))])),
        ("z.webp", picture(format="webp")),
        ("z.ppm", b"P6 8 8 100\n" + bytes(192)),
        ("z.jpg", picture(format="jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0text" + bytes(4))),
        pytest.param(
            *("z.avif", None), marks=pytest.mark.skipif(".avif" not in PIL.Image.registered_extensions(), reason="AVIF")
        ),
    ],
)
def test_pictures_that_all_read_as_rgb(tmp_path, name, data):
    folder = make_folder(tmp_path / "f", {**GOOD, name: data or picture(format="avif")})
    for reader, said in readers.read(folder, tmp_path / "o.zip").items():
        assert "4 images of 8x8 RGB; labels: " in said and "frame" not in said, (reader, said)


def test_black_and_white_is_gray(tmp_path):
    folder = make_folder(tmp_path / "f", {"0.png": picture(mode="1"), "1.png": picture(mode="L")})
    assert all("2 images of 8x8 gray; " in said for said in readers.read(folder, tmp_path / "o.zip").values())
    assert set(np.unique(ImageFolderDataset(folder)[0][0])) == {0, 255}


@pytest.mark.skipif(not FAULTS.is_dir(), reason="needs the folder shared/faults")
def test_given_pictures(tmp_path):
    """CMYK is RGB, EXIF is applied, 16 bits per channel and alpha are refused, a PDF is no image."""
    for name, message in [
        ("cmyk.jpg", "1 image of 16x16 RGB"),
        ("orientation6.jpg", "images are 32x48, not square|squares"),
        ("rgb16-dark.png", DEEP),
        ("rgba.png", "4 channels|not square|squares"),
        ("README.pdf", "no image files .*1 PDF"),
    ]:
        folder = make_folder(tmp_path / name, {name: (FAULTS / name).read_bytes()})
        for reader, said in readers.read(folder, tmp_path / "o.zip").items():
            assert re.search(message, said) or (reader == "fid" and "expected at least 2" in said), (reader, said)
    with pytest.raises(UserError, match="rgba.png of .* has 4 channels; expected 1"):
        convert(tmp_path / "rgba.png", tmp_path / "p.zip", transform="center-crop-wide", resolution=(16, 8))
    assert "left out: 3 hidden" in readers.train(FAULTS / "macosx.zip")


@pytest.mark.parametrize("format", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, format, orientation):
    stored = np.asarray(PIL.Image.open(io.BytesIO(picture(16, 8, format=format))))
    turns = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud}
    turns |= {5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1)}
    want = {**turns, 8: np.rot90}[orientation](stored)
    data = picture(16, 8, format=format, exif=exif(orientation))
    np.testing.assert_array_equal(decode(data, "x"), want)
    folder = make_folder(tmp_path, {f"x.{format}": data})
    assert ImageFolderDataset(folder).survey().startswith(f"1 image of {want.shape[1]}x{want.shape[0]} RGB")


@pytest.mark.parametrize("name", ["z.gif", "z.png", "z.tiff", "z.webp"])
def test_the_first_frame_is_taken_and_that_is_said(tmp_path, name):
    folder = make_folder(tmp_path / "f", {**GOOD, name: frames(name[2:])})
    for reader, said in readers.read(folder, tmp_path / "o.zip").items():
        assert "only the first frame of 1 image" in said, (reader, said)
    assert ImageFolderDataset(folder)[3][0].any()


def test_damaged_pixels_and_bombs(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "f", {**GOOD, "z.png": GOOD["0.png"][:-60]})
    said = readers.read(folder, tmp_path / "o.zip")
    assert all("cannot read image z.png" in said[reader] for reader in ("convert", "check"))
    with pytest.raises(UserError, match="cannot read image z.png"):
        ImageFolderDataset(folder)[3]
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 16)
    for reader, said in readers.read(make_folder(tmp_path / "b", GOOD), tmp_path / "o.zip").items():
        assert said.startswith("refused: ") and "exceeds limit" in said, (reader, said)


@pytest.mark.parametrize(
    "side, message",
    [
        *((side, "") for side in (4, 8, 64)),
        *((side, "not a power of two") for side in (16 + 4, 28, 48, 96, 100)),
        *((side, "refused: ") for side in (2, 6, 10, 12, 17, 18, 30, 50)),
    ],
)
def test_sides_that_can_be_trained(tmp_path, side, message):
    folder = make_folder(tmp_path / "f", {"0.png": picture(side, side, "L")})
    notes = []
    try:
        convert(folder, tmp_path / "o.zip", report=notes.append)
    except UserError as error:
        notes = [f"refused: {error}"]
    assert message in notes[-1] if message else len(notes) == 1
    said = readers.read(folder, tmp_path / "p.zip")
    assert {said[reader].startswith("refused: ") for reader in ALL[:3]} == {message == "refused: "}


def test_networks_of_more_levels_ask_for_more(tmp_path):
    dataset = ImageFolderDataset(make_folder(tmp_path / "f", {"0.png": picture(28, 28)}))
    assert dataset.survey(halvings=2)
    with pytest.raises(UserError, match="28 cannot be halved 3 times.*multiple of 8"):
        dataset.survey(halvings=3)


# --- listings ---------------------------------------------------------------------------------------------------------


def test_what_is_no_image_is_left_out_and_counted(tmp_path):
    litter = {
        ".ipynb_checkpoints/0-checkpoint.png": GOOD["0.png"],
        "cat/._0.png": b"x",
        "__MACOSX/cat/0.png": b"x",
        "@eaDir/0.png/thumb.jpg": GOOD["0.png"],
        "Thumbs.db": b"x",
        "cat/.DS_Store": b"x",
        "README.pdf": b"%PDF-1.4",
        "plot.eps": b"%!PS",
        "clip.mpg": b"x",
        "notes.txt": b"x",
        "LICENSE": b"x",
    }
    files = {**{f"{top}/{name}": data for top in ("cat", "dog") for name, data in GOOD.items()}, **litter}
    make_zip(tmp_path / "f.zip", files)
    make_folder(tmp_path / "f", files)
    left_out = "left out: 6 hidden, 1 EPS, 1 MPG, 1 PDF, 1 TXT, 1 without extension"
    for path in (tmp_path / "f", tmp_path / "f.zip"):
        for reader, said in readers.read(path, tmp_path / "o.zip").items():
            assert "6 images of 8x8 RGB; " in said, (reader, said)
            assert sorted(said.partition("left out: ")[2].split(", ")) == sorted(left_out[10:].split(", ")), reader


def test_grids_are_left_out(tmp_path):
    folder = make_folder(tmp_path / "f", GOOD)
    for name in ("grid.png", "000099.png", "deep/preview.png"):
        save_grid(folder / name, [np.zeros((8, 8, 3), np.uint8)] * 4)
    for reader, said in readers.read(folder, tmp_path / "o.zip").items():
        assert "3 images of 8x8 RGB; " in said and said.endswith("left out: 3 grid"), (reader, said)


def test_links_are_followed_without_going_in_circles(tmp_path):
    make_folder(tmp_path / "real", GOOD)
    folder = make_folder(tmp_path / "f", {"ant/0.png": GOOD["0.png"]})
    for name, target in [("cat", "../real"), ("dog", "../real"), ("up", "."), ("x", "none"), ("y", "y")]:
        (folder / name).symlink_to(target)
    (folder / "ant" / "up").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    for reader, said in readers.read(folder, tmp_path / "o.zip").items():
        assert "7 images of 8x8 RGB; " in said, (reader, said)
        left_out = "left out: 2 link to a folder above it, 2 without extension, 1 special file"
        assert said.endswith(left_out), (reader, said)
    assert [label for _, label in _sources.open_source(folder)[1]] == [0, 1, 1, 1, 2, 2, 2]
    (folder / "ant" / "x.png").symlink_to("none")  # an image that is missing
    for reader, said in readers.read(folder, tmp_path / "p.zip").items():
        assert "x.png" in said and "No such file" in said, (reader, said)


TABLE = {"labels": [[name, i] for i, name in enumerate(GOOD)]}


@pytest.mark.parametrize(
    "files, said",
    [
        ({**GOOD, "dataset.json": TABLE}, "labels: dataset.json, 3 classes"),
        ({**below("./"), "./dataset.json": TABLE}, "labels: dataset.json, 3 classes"),
        ({**below("/"), "dataset.json": TABLE}, "labels: dataset.json, 3 classes"),
        ({**below("../"), "d/": b"", "d/e/": b""}, "labels: none (no dataset.json"),
        (
            {**below("cat\\"), "dataset.json": {"labels": {f"cat/{n}": 0 for n in GOOD}}},
            "labels: dataset.json, 1 class",
        ),
        (
            {**below("\xe9"), "dataset.json": {"labels": {f"e\u0301{n}": 0 for n in GOOD}}},
            "labels: dataset.json, 1 class",
        ),
        ({**below("data/"), "data/dataset.json": TABLE}, "labels: none (data/dataset.json does not lie at the top"),
        ({**below("cat/"), **below("dog/")}, "labels: none (no dataset.json"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_odd_zips_that_are_read(tmp_path, files, said, compression):
    path = make_zip(tmp_path / "ODD.ZIP", files, compression=compression)
    for reader, text in readers.read(path, tmp_path / "o.zip", labels="dataset.json, " in said).items():
        assert f"{sum(n.endswith('.png') for n in files)} images of 8x8 RGB; " in text, (reader, text)
        assert reader not in ("convert", "check") or said in text, (reader, text)


def patched(data, position, value):
    """A zip whose first central record holds other bytes at `position`."""
    start = data.index(b"PK\1\2") + position
    return data[:start] + value + data[start + len(value) :]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data[:-30], "not a readable zip"),
        (lambda data: data[: len(data) // 2], "not a readable zip"),
        (lambda data: b"text", "not a readable zip"),
        (lambda data: patched(data, 8, b"\1\0"), "0.png in .*encrypted"),
        (lambda data: patched(data, 10, struct.pack("<H", 97)), "0.png in .*compression method"),
        (lambda data: patched(data, 24, struct.pack("<I", 0xFFFFFFF0)), "0.png in .*claims 4294967280 bytes"),
        (lambda data: data.replace(b"IDAT", b"IDOT", 1), "0.png in .*(CRC|read)"),
    ],
)
def test_odd_zips_that_are_refused(tmp_path, change, message):
    path = make_zip(tmp_path / "a.zip", GOOD)
    path.write_bytes(change(path.read_bytes()))
    for reader, said in readers.read(path, tmp_path / "o.zip").items():
        assert said.startswith("refused: ") and re.search(message, said), (reader, said)


def test_names_twice_are_refused_and_surroundings_ignored(tmp_path):
    twice = make_zip(tmp_path / "twice.zip", [*GOOD.items(), ("./0.png", GOOD["1.png"])])
    assert all("occur more than once: 0.png" in said for said in readers.read(twice, tmp_path / "o.zip").values())
    path = make_zip(tmp_path / "a.zip", GOOD)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes() + b"garbage")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "0.png")
    assert all("left out: 1 link" in said for said in readers.read(path, tmp_path / "o.zip").values())
