"""Ctrl-C at any moment leaves every file as it was or whole, and no temporary one beside it."""

import os
import signal

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from edm_fast import checkpoint, cli, files
from edm_fast.cli._image_files import write_tar, write_zip
from edm_fast.data.convert import convert
from edm_fast.evaluation import fid
from edm_fast.sampling import sample_seeds, save_grid, save_png
from edm_fast.sampling.solvers import _generate
from helpers import tiny_training
from helpers.tiny_networks import tiny, tiny_checkpoint

IMAGE = np.zeros((8, 8, 3), np.uint8)


def write(path, mode, data):
    with files.atomic_write(path, mode) as file:
        file.write(data)


WRITES = {
    "bytes": ("a.bin", lambda path: write(path, "wb", b"new")),
    "text": ("a.json", lambda path: write(path, "w", "new")),
    "network": ("a.safetensors", lambda path: checkpoint.save(tiny(), path)),
    "network folder": ("a", lambda path: checkpoint.save(tiny(), path)),
    "pickle": ("a.pkl", lambda path: checkpoint.save_pkl(tiny(), path)),
    "image": ("a.png", lambda path: save_png(path, IMAGE)),
    "tar": ("a.tar", lambda path: write_tar(path, [("0.png", b"", 1)])),
    "zip": ("a.zip", lambda path: write_zip(path, [("0.png", b"", None)])),
    "grid": ("a.png", lambda path: save_grid(path, [IMAGE] * 4)),
    "statistics": ("a.npz", lambda path: fid.save_statistics(path, np.zeros(2), np.eye(2))),
}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", [False, True], ids=["new", "over another"])
@pytest.mark.parametrize("name", WRITES)
def test_while_a_file_is_written(name, there, tmp_path, monkeypatch):
    file, action = WRITES[name]
    if there:
        action(tmp_path / file)
    before = contents(tmp_path)

    def interrupt(*args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupt)  # the data is written, the file has no name yet
    with pytest.raises(KeyboardInterrupt):
        action(tmp_path / file)
    assert contents(tmp_path) == before


def stop_after(count):
    def progress(items, total):
        for index, item in enumerate(items):
            if index == count:
                signal.raise_signal(signal.SIGINT)
            yield item

    return progress


@pytest.mark.parametrize("dest", ["new.zip", "old.zip", "deep/new", "empty"])
def test_while_images_are_converted(tmp_path, dest):
    source = tiny_training.write_dataset(tmp_path / "source.zip")
    convert(source, tmp_path / "old.zip", max_images=3)
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / dest, progress=stop_after(5))
    assert contents(tmp_path) == before and not any((tmp_path / "empty").iterdir())
    assert convert(source, tmp_path / dest) == 12  # nothing stands in the way of another try


def test_while_images_are_drawn(tmp_path, monkeypatch):
    options = ["generate", f"--network={tiny_checkpoint(tmp_path)}", "--seeds=0-7", "--batch=3", "--steps=2"]
    options += ["--device=cpu"]
    drawn = []

    def interrupted(net, sampler, seeds, *args, **kwargs):
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGINT)
        drawn.append(seeds)
        return sample_seeds(net, sampler, seeds, *args, **kwargs)

    grid = tmp_path / "grid.png"
    monkeypatch.setattr(_generate, "sample_seeds", interrupted)
    result = CliRunner().invoke(cli.main, [*options, f"--outdir={tmp_path / 'out'}", f"--grid={grid}"])
    assert result.exit_code == 130 and "interrupted" in result.stderr and "Traceback" not in result.output
    assert sorted(contents(tmp_path / "out")) == [f"{seed:06d}.png" for seed in range(6)] and not grid.exists()
    for path in (tmp_path / "out").iterdir():
        PIL.Image.open(path).load()
    monkeypatch.undo()
    CliRunner().invoke(cli.main, [*options, f"--outdir={tmp_path / 'out'}", "--skip-existing"], catch_exceptions=False)
    CliRunner().invoke(cli.main, [*options, f"--outdir={tmp_path / 'whole'}"], catch_exceptions=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
