"""edm-fast dataset: published flags, the check, and one line with exit code 2 for bad input."""

import json
import zipfile

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from edm_fast.cli import main
from edm_fast.cli.dataset import convert


def run(*args, code=0):
    result = CliRunner().invoke(main, ["dataset", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def refused(*args):
    """The one line of an error."""
    result = run(*args, code=2)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.output
    return lines[0]


@pytest.fixture
def source(tmp_path):
    for i, name in enumerate(["cat/0.png", "cat/1.png", "dog/0.png"]):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(i).randint(0, 256, (20, 24, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "source" / name)
    return tmp_path / "source"


@pytest.mark.parametrize("verb", [[], ["convert"]])
@pytest.mark.parametrize("resolution", ["16x16", "16,16"])
def test_convert_then_check(source, tmp_path, verb, resolution):
    args = [f"--source={source}", f"--dest={tmp_path}/o.zip", "--transform=center-crop", f"--resolution={resolution}"]
    assert run(*verb, *args).output.splitlines() == [
        "3 images of 24x20 RGB; labels: folders, 2 classes (cat = 0, dog = 1)",
        f"3 images in {tmp_path}/o.zip",
    ]
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        assert [label for _, label in json.loads(archive.read("dataset.json"))["labels"]] == [0, 0, 1]
    assert run("check", tmp_path / "o.zip").output.splitlines()[-1] == f"{tmp_path}/o.zip: good"


def test_published_parameter_names():
    with convert.make_context("convert", ["--source=s", "--dest=d", "--resolution=64x32", "--max-images=3"]) as ctx:
        want = {"source": "s", "dest": "d", "max_images": 3, "transform": None, "resolution": (64, 32)}
        assert ctx.params == want


def test_check_fails_with_code_2(source):
    output = run("check", source, code=2).output
    assert "problem: images are 24x20, not square" in output
    assert output.splitlines()[-1] == f"{source}: not usable as it is"


def test_errors_are_one_line(source, tmp_path):
    good = f"--source={source}"
    dest = f"--dest={tmp_path}/o.zip"
    assert "no file or folder" in refused("--source=nowhere", dest)
    assert "--dest" in refused(good)
    assert "empty text" in refused(good, "--dest=")
    assert "expected WxH" in refused(good, dest, "--resolution=64")
    for size in ("axb", "64x", "-8x8", "8x8x8", "9" * 5000 + "x8", "1e3x8"):
        assert "expected WxH" in refused(good, dest, f"--resolution={size}")
    for size in ("0x0", "0x8", "100000x100000", "8193x8"):
        assert "from 1 to 8192" in refused(good, dest, f"--resolution={size}")
    assert "not square" in refused(good, dest) or "expected square" in refused(good, dest)
    assert "--transform" in refused(good, dest, "--transform=crop")
    assert "needs a resolution" in refused(good, dest, "--transform=center-crop")
    assert "does not exist" in refused("check", tmp_path / "none")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert "expected an undamaged zip" in refused(f"--source={tmp_path}/bad.zip", dest)
    assert "not a readable zip" in refused("check", tmp_path / "bad.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "source"]


def test_unwritable_destination(source, tmp_path):
    # a file where a folder should be cannot be written below, not even by root
    (tmp_path / "file").touch()
    args = [f"--source={source}", "--resolution=16x16"]
    assert "file" in refused(*args, f"--dest={tmp_path}/file/o.zip")
    assert "file" in refused(*args, f"--dest={tmp_path}/file/o")


def test_full_disk(source, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    line = refused(f"--source={source}", f"--dest={tmp_path}/o.zip", "--resolution=16x16")
    assert line == "Error: No space left on device"
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_help_lists_both_verbs():
    output = run("--help").output
    assert "convert" in output and "check" in output
    assert "--max-images" in run("convert", "--help").output
