"""edm-fast fid: published flags, the protocol and the number, several processes, bad input."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from edm_fast.cli import main
from edm_fast.cli.fid import calc, ref
from edm_fast.evaluation import fid
from edm_fast.sampling import save_grid
from helpers import tiny_detector


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images a/ (12 RGB) and b/ (9 gray), a detector, and no other detector to be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path / "cache"))
    rng = np.random.RandomState(0)
    for name, count, shape in [("a", 12, (8, 8, 3)), ("b", 9, (8, 8))]:
        (tmp_path / name).mkdir()
        for i in range(count):
            PIL.Image.fromarray(rng.randint(0, 256, shape).astype(np.uint8)).save(tmp_path / name / f"{i:03d}.png")
    tiny_detector.save(tmp_path / "detector.pt", dim=4)
    return tmp_path


def run(*args, code=0):
    result = CliRunner().invoke(main, ["fid", *args])
    assert result.exit_code == code, result.output
    return result


def refused(*args):
    lines = run(*args, code=2).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), lines
    return lines[0]


def test_ref_then_calc(place):
    run("ref", "--data=b", "--dest=out/b.npz", "--detector=detector.pt", "--device=cpu")
    result = run(
        "calc", "--images=a", "--ref=out/b.npz", "--num=12", "--detector=detector.pt", "--device=cpu", "--batch=5"
    )
    lines = result.stdout.splitlines()
    features = fid.load_detector("detector.pt")
    a, b = (fid.compute_statistics(fid.open_images(name), features, workers=0) for name in "ab")
    assert lines[-1] == f"{fid.frechet_distance(*a, *b):g}"
    assert lines[:-1] == [
        "images: a: 12 images of 8x8 RGB; labels: not used",
        "seed: 0",
        "reference: out/b.npz",
        "detector: detector.pt",
        "batch: 5 x 1 on cpu",
    ]


def test_sums_of_parts_add_up(place):
    d = "--detector=detector.pt"
    run("ref", "--data=b", "--dest=b.npz", d)
    features = fid.load_detector("detector.pt")
    a, b = (fid.compute_statistics(fid.open_images(name), features, workers=0) for name in "ab")
    whole = pytest.approx(fid.frechet_distance(*a, *b), rel=1e-5)
    for index in range(3):
        output = run("sums", "--images=a", f"--dest=s{index}.npz", "--batch=2", f"--shard={index}/3", d).output
        assert f"4 images in s{index}.npz" in output
    parts = [f"--sums=s{index}.npz" for index in range(3)]
    merged = run("calc", *parts, "--ref=b.npz", "--num=12").stdout.splitlines()  # no detector
    assert float(merged[-1]) == whole and merged[0] == "sums: s0.npz, s1.npz, s2.npz"
    (place / "rest").mkdir()
    for name in ("004.png", "005.png", "010.png", "011.png"):  # the last batches of two go to the last part
        (place / "a" / name).rename(place / "rest" / name)
    again = run("calc", "--images=rest", *parts[:2], "--ref=b.npz", "--num=12", d).stdout.splitlines()[-1]
    assert float(again) == whole
    line = refused("calc", *parts, "--ref=b.npz", "--num=13")
    assert "--sums are of 12 images and --num is 13; expected as many" in line
    assert "and --images the rest" in refused("calc", *parts, "--images=rest", "--ref=b.npz", "--num=12", d)
    assert "has s0.npz twice" in refused("calc", parts[0], parts[0], "--ref=b.npz", "--num=8")
    assert "no images; expected --images, --sums or both" in refused("calc", "--ref=b.npz")
    assert "expected sums of edm-fast fid sums" in refused("calc", "--sums=none.npz", "--ref=b.npz")
    assert "arrays s1 and s2 and count and detector" in refused("calc", "--sums=b.npz", "--ref=b.npz")
    tiny_detector.save(place / "other.pt", dim=5)
    run("sums", "--images=rest", "--dest=s3.npz", "--detector=other.pt")
    assert "s3.npz holds 5; expected equal counts" in refused("calc", "--sums=s3.npz", "--ref=b.npz")
    run("ref", "--data=b", "--dest=b5.npz", "--detector=other.pt")
    with np.load("s3.npz") as npz:
        np.savez("s4.npz", **{**npz, "detector": "0" * 64})
    assert "s4.npz is of another detector than s3" in refused("calc", "--sums=s3.npz", "--sums=s4.npz", "--ref=b5.npz")
    line = refused("calc", "--images=a", "--sums=s4.npz", "--ref=b5.npz", "--num=12", "--detector=other.pt")
    assert "s4.npz is of another detector than other.pt" in line


def test_few_images_are_noted_and_equal_sets_are_near_zero(place):
    run("ref", "--data=a", "--dest=a.npz", "--detector=detector.pt")
    assert "ill-conditioned" in run("calc", "--images=a", "--ref=a.npz", "--num=4", "--detector=detector.pt").output
    last = run("calc", "--images=a", "--ref=a.npz", "--num=12", "--detector=detector.pt").stdout.splitlines()[-1]
    assert abs(float(last)) < 1e-6


def test_images_are_looked_at_before_the_detector(place):
    save_grid(place / "a" / "grid.png", [np.zeros((8, 8, 3), np.uint8)] * 4)
    (place / "a" / "._000.png").write_bytes(b"x")
    result = run("calc", "--images=a", "--ref=" + str(reference(place)), "--num=12", "--detector=detector.pt")
    assert (
        result.stdout.splitlines()[0] == "images: a: 12 images of 8x8 RGB; labels: not used; left out: 1 hidden, 1 grid"
    )
    for size, mode, shape in [((8, 8), "L", "[1, 8, 8]"), ((16, 8), "RGB", "[3, 8, 16]")]:
        PIL.Image.new(mode, size).save(place / "a" / "zzz.png")
        for args in (["ref", "--data=a", "--dest=o.npz"], ["calc", "--images=a", "--ref=r.npz", "--num=13"]):
            line = refused(*args, "--detector=none.pt")
            assert "zzz.png" in line and shape in line


def reference(place):
    np.savez(place / "r.npz", mu=np.zeros(4), sigma=np.eye(4))
    return place / "r.npz"


def test_detector_is_found_in_the_cache_folder(place):
    (place / "cache").mkdir()
    (place / "detector.pt").rename(place / "cache" / "inception-2015-12-05.pt")
    assert "inception-2015-12-05.pt" in run("ref", "--data=b", "--dest=b.npz").output


def test_published_parameter_names():
    with calc.make_context("calc", ["--images=i", "--ref=r.npz"]) as ctx:
        want = {"image_path": "i", "ref_path": "r.npz", "num_expected": 50000, "seed": 0, "batch": 64}
        assert {key: ctx.params[key] for key in want} == want
    with ref.make_context("ref", ["--data=d", "--dest=x.npz"]) as ctx:
        want = {"dataset_path": "d", "dest_path": "x.npz", "batch": 64}
        assert {key: ctx.params[key] for key in want} == want


def test_errors_are_one_line(place):
    np.savez("r4.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez("r5.npz", mu=np.zeros(5), sigma=np.eye(5))
    d = "--detector=detector.pt"
    assert "holds 12 images; expected at least 50000" in refused("calc", "--images=a", "--ref=r4.npz", d)
    assert "--num" in refused("calc", "--images=a", "--ref=r4.npz", "--num=1", d)
    assert "--batch" in refused("calc", "--images=a", "--ref=r4.npz", "--batch=0", d)
    assert "none.npz" in refused("calc", "--images=a", "--ref=none.npz", d)
    assert "none" in refused("calc", "--images=none", "--ref=r4.npz", d)
    assert "5 features" in refused("calc", "--images=a", "--ref=r5.npz", "--num=12", d)
    assert "no detector; expected --detector FILE" in refused("calc", "--images=a", "--ref=r4.npz", "--num=12")
    assert "none.pt" in refused("ref", "--data=a", "--dest=o.npz", "--detector=none.pt")
    assert "not a TorchScript archive" in refused("ref", "--data=a", "--dest=o.npz", "--detector=a/000.png")
    assert "expected auto, cpu" in refused("ref", "--data=a", "--dest=o.npz", "--device=nowhere", d)
    assert "expected auto, cpu" in refused("ref", "--data=a", "--dest=o.npz", "--device=meta", d)
    assert "is a folder" in refused("ref", "--data=a", "--dest=b", d)
    (place / "bad.zip").write_bytes(b"PK")
    assert "bad.zip" in refused("ref", "--data=bad.zip", "--dest=o.npz", d)
    assert "r4.npz" in refused("ref", "--data=a", "--dest=r4.npz/o.npz", d)
    (place / "a" / "005.png").write_bytes(b"")
    assert "005.png" in refused("ref", "--data=a", "--dest=o.npz", d)
    assert not (place / "o.npz").exists()


def test_damaged_member_of_a_zip(place):
    with zipfile.ZipFile("a.zip", "w") as archive:
        for path in sorted((place / "a").iterdir()):
            archive.write(path, path.name)
    data = bytearray((place / "a.zip").read_bytes())
    data[data.index(b"IDAT", len(data) // 2) + 20] ^= 1
    (place / "a.zip").write_bytes(data)
    assert "a.zip" in refused("ref", "--data=a.zip", "--dest=o.npz", "--detector=detector.pt")


def test_full_disk(place, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert refused("ref", "--data=a", "--dest=o/o.npz", "--detector=detector.pt") == "Error: No space left on device"
    assert list((place / "o").iterdir()) == []


def test_two_processes_print_the_same_number(place):
    run("ref", "--data=b", "--dest=b.npz", "--detector=detector.pt")
    args = [
        "fid",
        "calc",
        "--images=a",
        "--ref=b.npz",
        "--num=11",
        "--batch=3",
        "--detector=detector.pt",
        "--device=cpu",
    ]
    one = CliRunner().invoke(main, args).stdout.splitlines()
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "--",
        "edm_fast",
    ]
    two = subprocess.run(launch + args, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert two.returncode == 0, two.stderr
    assert two.stdout.splitlines()[-1] == one[-1]
    assert two.stdout.count(one[-1]) == 1 and "batch: 3 x 2 on cpu" in two.stdout
