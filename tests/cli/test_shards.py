"""edm-fast generate in shards, its archives, and what --check finds."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest

from edm_fast import use_backend
from edm_fast.cli import _image_files
from edm_fast.data import ImageFolderDataset
from edm_fast.sampling import sample_seeds, seed_inputs
from edm_fast.sampling.solvers import _generate
from helpers.command_line import refused, run
from helpers.tiny_networks import tiny, tiny_checkpoint


@pytest.fixture(autouse=True)
def set_up(monkeypatch):
    """Small archives, plain PyTorch."""
    for kind in ("zip", "tar"):
        monkeypatch.setitem(_image_files.FORMATS, kind, _image_files.FORMATS[kind]._replace(size=5))
    with use_backend("reference"):
        yield


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("net"), label_dim=4)


@pytest.fixture
def generate(network, tmp_path):
    def call(outdir, *args):
        options = ("--device=cpu", f"--network={network}", "--steps=1", f"--outdir={tmp_path / outdir}")
        return run("generate", *options, *args)

    return call


def succeed(result):
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OPTIONS = ("--seeds=3-20,40", "--batch=4")


@pytest.fixture
def batches(monkeypatch):
    """The batches that are drawn."""
    found = []

    def recorded(net, sampler, seeds, *args, **kwargs):
        found.append(tuple(seeds))
        return sample_seeds(net, sampler, seeds, *args, **kwargs)

    monkeypatch.setattr(_generate, "sample_seeds", recorded)
    return found


@pytest.mark.parametrize("kind", ["png", "zip", "tar"])
def test_shards_write_what_one_process_writes(kind, generate, batches, tmp_path):
    options = (*OPTIONS, f"--format={kind}")
    succeed(generate("one", *options))
    of_one = {*batches}
    for index in (2, 0, 3, 1):
        output = succeed(generate("four", *options, f"--shard={index}/4"))
        assert f"shard {index} of 4" in output
    assert contents(tmp_path / "four") == contents(tmp_path / "one")
    assert {*batches} == of_one and len(batches) <= 2 * len(of_one) + (0 if kind == "png" else 3)
    names = sorted(contents(tmp_path / "one"))
    if kind != "png":
        assert names == [f"{seed:06d}.{kind}" for seed in (3, 8, 13, 18)]
    assert "19 images, none missing, wrong or foreign" in succeed(generate("four", *options, "--check"))
    # what a killed shard lacks
    (tmp_path / "four" / names[1]).unlink()
    (tmp_path / "four" / f".{names[1]}.abc.tmp").write_bytes(b"left by a killed run")
    for index in range(4):
        succeed(generate("four", *options, f"--shard={index}/4", "--skip-existing"))
    assert {*batches} == of_one
    assert contents(tmp_path / "four") == contents(tmp_path / "one")


def test_more_shards_than_batches(generate, tmp_path):
    for index in range(3):
        succeed(generate("three", "--seeds=0-4", "--batch=3", f"--shard={index}/3"))
    assert len(contents(tmp_path / "three")) == 5


def test_a_killed_shard_is_run_again(network, generate, tmp_path, monkeypatch):
    options = ["--seeds=0-23", "--batch=3"]
    command = [sys.executable, "-m", "edm_fast", "generate", f"--network={network}", "--steps=1", "--device=cpu"]
    monkeypatch.setenv("EDM_FAST_BACKEND", "reference")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in {"SLURM_ARRAY_TASK_ID": 2, "SLURM_ARRAY_TASK_COUNT": 2, "SLURM_ARRAY_TASK_MIN": 1}.items():
        monkeypatch.setenv(name, str(value))
    out = tmp_path / "out"
    process = subprocess.Popen([*command, *options, f"--outdir={out}", "--shard"], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("0*.png")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    images = [name for name in contents(out) if not name.startswith(".")]  # the kill may leave a half-written file
    assert images and min(images) >= "000012.png"
    assert generate("out", *options, "--check").exit_code == 1
    for shard in ("--shard=0/2", "--shard"):
        succeed(generate("out", *options, shard, "--skip-existing"))
    succeed(generate("out", *options, "--check"))
    succeed(generate("one", *options))
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.parametrize("kind", ["png", "tar"])
def test_check(kind, generate, tmp_path):
    options = (*OPTIONS, f"--format={kind}")
    out = tmp_path / "out"
    assert generate("out", *options, "--check").output.splitlines() == ["missing: 19 of 19 seeds: 3-20,40"]
    succeed(generate("out", *options, f"--grid={out / 'grid.png'}"))
    succeed(generate("other", "--seeds=0-20", f"--format={kind}", "--class=1"))
    succeed(generate("out", *options, "--check"))
    assert generate("out", *options, "--check", "--steps=2").output == "wrong: 19 of 19 seeds: 3-20,40\n"
    files = sorted(path for path in out.iterdir() if path.name != "grid.png")
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-30] if kind == "png" else b"damaged")
    files[2].write_bytes((tmp_path / "other" / ("000005.png" if kind == "png" else "000010.tar")).read_bytes())
    (out / "000100.png").write_bytes((tmp_path / "other" / "000000.png").read_bytes() if kind == "png" else b"")
    result = generate("out", *options, "--check")
    assert result.exit_code == 1
    want = {
        "png": ["missing: 1 of 19 seeds: 3", "wrong: 2 of 19 seeds: 4-5", "foreign: 1 image: 000100.png"],
        "tar": [
            "missing: 8 of 19 seeds: 3-7,15-17",
            "wrong: 7 of 19 seeds: 8-14",
            "foreign: 4 images: 000100.png, 000013.tar/000010.png, 000013.tar/000011.png, 000013.tar/000012.png",
        ],
    }
    assert result.output.splitlines() == want[kind]
    assert "missing" in generate("out", *options, "--check", "--shard=0/4").output
    assert "missing" not in generate("out", *options, "--check", "--shard=3/4").output


def test_archives_hold_images_and_classes(generate, network, tmp_path):
    for kind in ("png", "zip", "tar"):
        succeed(generate(kind, "--seeds=0-6", "--batch=3", f"--format={kind}", f"--grid={tmp_path / kind}.png"))
    pngs = contents(tmp_path / "png")
    labels = seed_inputs(tiny(label_dim=4), range(7))[1].argmax(1).tolist()
    with tarfile.open(tmp_path / "tar/000000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
        assert {(member.mtime, member.uid, member.isreg()) for member in archive} == {(0, 0, True)}
    assert [*members] == [f"{seed:06d}.{end}" for seed in range(5) for end in ("png", "cls")]
    assert all(members[f"{seed:06d}.png"] == pngs[f"{seed:06d}.png"] for seed in range(5))
    assert [int(members[f"{seed:06d}.cls"]) for seed in range(5)] == labels[:5]
    with zipfile.ZipFile(tmp_path / "zip/000005.zip") as archive:
        assert archive.namelist() == ["000005.png", "000006.png", "dataset.json"]
        assert archive.read("000006.png") == pngs["000006.png"]
    dataset = ImageFolderDataset(tmp_path / "zip/000000.zip", use_labels=True)
    assert [int(dataset[i][1].argmax()) for i in range(5)] == labels[:5]
    assert len({(tmp_path / f"{kind}.png").read_bytes() for kind in ("png", "zip", "tar")}) == 1
    # a folder of archives is one set of images
    for kind in ("zip", "tar"):
        images = ImageFolderDataset(tmp_path / kind)
        assert len(images) == 7
        for (found, _), (want, _) in zip(images, ImageFolderDataset(tmp_path / "png")):
            np.testing.assert_array_equal(found, want)


def test_archives_are_not_replaced_by_ones_of_other_seeds(generate, tmp_path):
    succeed(generate("out", "--seeds=0-4", "--format=tar"))
    before = contents(tmp_path / "out")
    for more in ([], ["--skip-existing"]):
        result = generate("out", "--seeds=0-2", "--format=tar", *more)
        assert result.exit_code == 2
        assert "000000.tar also holds 000003.png, 000004.png; expected --seeds that include them" in result.stderr
    result = generate("out", "--seeds=0-4", "--format=tar", "--skip-existing", "--class=1")
    assert result.exit_code == 2 and "000000.tar was not made by" in result.stderr
    assert contents(tmp_path / "out") == before
    assert "5 kept" in succeed(generate("out", "--seeds=0-6", "--format=tar", "--skip-existing"))
    succeed(generate("out", "--seeds=0-4", "--format=zip"))
    (tmp_path / "out" / "000000.zip").write_bytes(before["000000.tar"])
    assert generate("out", "--seeds=0-4", "--format=zip").exit_code == 2


def test_damaged_archives(generate, tmp_path):
    succeed(generate("out", "--seeds=0-4", "--format=tar"))
    path = tmp_path / "out/000000.tar"
    data = path.read_bytes()
    for bad in (data[:1500], b"x" * 600, b"", b"x" * 600 + bytes(512)):
        path.write_bytes(bad)
        with pytest.raises(OSError, match="000000.tar is not a readable tar archive"):
            ImageFolderDataset(path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(OSError, match="no image files .*left out: 1 link"):
        ImageFolderDataset(path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shard=3/3"], "'3/3' is not I/N with I from 0 to N-1"),
        (["--shard=x"], "'x' is not I/N"),
        (["--shard=0/2", "--grid=grid.png"], "--grid shows all images; expected no --shard"),
        (["--format=tar", "--subdirs"], "--subdirs does not go with --format=tar"),
        (["--check", "--device=toaster"], "toaster"),
        (["--check", "--device=cpu", "--precision=tf32"], "tf32"),
    ],
)
def test_bad_options(args, words, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("generate", f"--network={network}", "--outdir=out", "--seeds=0-4", *args)
    assert not os.path.exists("out")


def test_a_check_without_a_gpu_knows_images_of_one(generate, network, tmp_path, monkeypatch):
    from edm_fast.cli import generate as verb

    plain, cuda = verb.fingerprint, verb.named_device("cuda")
    monkeypatch.setattr(verb, "fingerprint", lambda net, gnet, device, *rest: plain(net, gnet, cuda, *rest))
    succeed(generate("out", "--seeds=0-4"))
    monkeypatch.setattr(verb, "fingerprint", plain)
    assert generate("out", "--seeds=0-4", "--check").exit_code == 1  # --device=cpu
    check = ("generate", f"--network={network}", "--steps=1", f"--outdir={tmp_path / 'out'}", "--seeds=0-4", "--check")
    assert run(*check).exit_code == 0
    succeed(generate("out", "--seeds=0"))  # on the CPU
    assert run(*check).output.splitlines()[-1] == "wrong: 1 of 5 seeds: 0"
