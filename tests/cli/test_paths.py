"""Every path of every verb: home folder, empty text, links, files that are there, files that are the source."""

import os
import re
from pathlib import Path

import click
import numpy as np
import PIL.Image
import pytest

from edm_fast import cli
from edm_fast.cli import _options as opt
from edm_fast.cli import bench, verify
from edm_fast.evaluation import _report, tuning
from edm_fast.evaluation import bench as measuring
from edm_fast.evaluation.tuning import _fit, _trials
from helpers import tiny_detector
from helpers.command_line import refused, run
from helpers.tiny_networks import tiny_checkpoint
from helpers.tiny_training import write_dataset

# every option and argument that takes a path
PATHS = {
    "generate": ["--network", "--gnet", "--solver", "--sampler", "--outdir", "--grid", "--html", "--trajectory"],
    "tune": ["network", "--out", "--check"],
    "train": ["--outdir", "--data", "--options", "--transfer", "--resume"],
    "fid calc": ["--images", "--sums", "--ref", "--detector"],
    "fid ref": ["--data", "--dest", "--detector"],
    "fid sums": ["--images", "--dest", "--detector"],
    "ema reconstruct": ["--indir", "--outdir"],
    "dataset convert": ["--source", "--dest"],
    "dataset check": ["path"],
    "convert": ["source", "dest", "--sampler", "--training-options"],
    "study design": ["--outdir", "--data"],
    "study ema": ["--snapshots", "--outdir", "--data", "--detector"],
    "study precision": ["--network", "--outdir"],
    "study quality": ["--network", "--outdir", "--data", "--detector"],
    "study stochasticity": ["--network", "--outdir", "--data", "--detector"],
    "study truncation": ["--network", "--outdir"],
    "bench": ["--networks", "--outdir", "--readme", "--results"],
    "verify": ["--network", "--json"],
    "tune-kernels": ["--network"],
    "doctor": [],
}
LOOKS_LIKE_A_PATH = re.compile(r"PATH|DIR|FILE|FOLDER|URL|ZIP|NPZ|PNG|PT\b|SRC|DST")
ALL = [(verb, option) for verb, options in PATHS.items() for option in options]


def commands(group, words=()):
    """(words, command) of every command below a group."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands(cli.main))


def param(verb, option):
    return next(p for p in COMMANDS[verb].params if option in (*p.opts, p.name))


def test_the_table_is_complete():
    assert COMMANDS.keys() == PATHS.keys()
    for verb, command in COMMANDS.items():
        for p in command.params:
            if isinstance(p.type, opt.UserPath) or LOOKS_LIKE_A_PATH.search(p.metavar or ""):
                assert {*p.opts, p.name} & {*PATHS[verb]}, f"{verb} {p.opts[0]} is not in the table"


@pytest.mark.parametrize(("verb", "option"), ALL)
def test_home_and_text_that_is_no_path(verb, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kind = param(verb, option)
    value = kind.type.convert("~/x", kind, None)
    assert value in (str(tmp_path / "home/x"), [str(tmp_path / "home/x")])
    for bad in ("", "  ", "a\0b", "file:///a", "~nosuchuser/a"):
        line = refused(*verb.split(), f"{option}={bad}" if option.startswith("--") else bad)
        assert (
            option.strip("-") in line or "'[DST]'" in line or "'NETWORK'" in line or "'SRC'" in line or "'FILE'" in line
        )
    assert os.listdir() == []


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a network, images and a detector; slow measurements are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_checkpoint(tmp_path)
    write_dataset("images.zip", size=8, channels=3)
    Path("images").mkdir()
    for i in range(2):
        PIL.Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(f"images/{i}.png")
    tiny_detector.save("detector.pt")
    for name in ("verify_ops", "verify_network"):
        monkeypatch.setattr(verify, name, lambda *args: [])
    monkeypatch.setattr(tuning.Truth.__init__, "__defaults__", (4, "ipndm"))
    monkeypatch.setitem(_fit.TEACHER, "num_steps", 8)
    monkeypatch.delitem(_trials.GRIDS, "optimised")  # takes seconds
    monkeypatch.setattr(measuring, "measure", lambda *args: [])
    monkeypatch.setattr(bench._machine, "slug", lambda settings: "here")
    monkeypatch.setattr(_report, "heading", lambda document: "heading")
    monkeypatch.setattr(_report, "chart", lambda document, path: "no chart")
    Path("README.md").write_text(f"# é\r\n{_report.BEGIN}\r\n{_report.END}\r\n", encoding="utf-8", newline="")
    return tmp_path


NET = "--network=tiny.safetensors"
GENERATE = ("generate", NET, "--device=cpu", "--seeds=3", "--steps=2")
BENCH = ("bench", "networks", "--networks=tiny.safetensors", "--rounds=1")
TUNE = ("tune", "tiny.safetensors", "--nfe=2", "--max-error=500", "--seeds=0-7", "--solvers=euler", "--device=cpu")
# verb: (its arguments for a destination, a name for that, a file that must not be replaced, the sources)
WRITERS = {
    "generate image": (lambda d: (*GENERATE, f"--outdir={Path(d).parent}"), "out/000003.png", "text", []),
    "generate grid": (lambda d: (*GENERATE, "--outdir=out", f"--grid={d}"), "grid.png", "text", ["out/000003.png"]),
    "generate page": (lambda d: (*GENERATE, "--outdir=out", f"--html={d}"), "a/s.html", "zip", ["out/000003.png"]),
    "generate film": (lambda d: (*GENERATE, "--outdir=out", f"--trajectory={d}"), "s.gif", "text", ["out/000003.png"]),
    "fid ref": (
        lambda d: ("fid", "ref", "--data=images.zip", f"--dest={d}", "--detector=detector.pt", "--device=cpu"),
        "a/ref.npz",
        "zip",
        ["images.zip"],
    ),
    "fid sums": (
        lambda d: ("fid", "sums", "--images=images.zip", f"--dest={d}", "--detector=detector.pt", "--device=cpu"),
        "a/sums.npz",
        "zip",
        ["images.zip"],
    ),
    "dataset": (lambda d: ("dataset", "--source=images.zip", f"--dest={d}"), "a/set.zip", "text", ["images.zip"]),
    "convert": (
        lambda d: ("convert", "tiny.safetensors", d, "--overwrite"),
        "a/net.safetensors",
        "text",
        ["tiny.safetensors"],
    ),
    "convert pkl": (lambda d: ("convert", "tiny.safetensors", d, "--overwrite"), "net.pkl", "text", []),
    "verify": (lambda d: ("verify", NET, "--device=cpu", f"--json={d}"), "a/found.json", "text", ["tiny.safetensors"]),
    "tune": (lambda d: (*TUNE, f"--out={d}"), "a/tiny.sampler.json", "text", ["tiny.safetensors"]),
    "bench": (lambda d: (*BENCH, f"--outdir={Path(d).parent}"), "out/networks-here.json", "text", []),
    "bench page": (lambda d: (*BENCH, f"--outdir={Path(d).parent}"), "out/networks-here.md", "zip", []),
    "readme": (lambda d: ("bench", f"--readme={d}", "--results=."), "README.md", None, []),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_destinations(writer, place):
    arguments, name, other, sources = WRITERS[writer]
    dest = Path(name)
    # a new name, in the home folder, then replaced through a link
    if writer != "readme":
        assert run(*arguments(f"~/{name}")).exit_code == 0
    real = Path("real" + dest.suffix).absolute()
    dest.rename(real)
    dest.symlink_to(real)
    before = real.stat()
    result = run(*arguments(name))
    assert result.exit_code == 0, result.output
    assert dest.is_symlink() and real.stat().st_ino != before.st_ino, "the target of the link is replaced"
    assert "replaced" in result.output or "--overwrite" in arguments(name) or writer == "readme"
    # what is never replaced
    dest.unlink()
    os.mkfifo(dest)
    if writer != "readme":  # it would be read first
        assert "device, pipe or socket" in refused(*arguments(name))
    dest.unlink()
    if other is not None:
        data = Path("images.zip").read_bytes() if other == "zip" else b"thesis"
        dest.write_bytes(data)
        assert "expected a new name" in refused(*arguments(name))
        assert dest.read_bytes() == data
        dest.unlink()
    dest.mkdir()
    refused(*arguments(name))
    assert dest.is_dir() and not list(place.rglob("*.tmp"))


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("writer", [writer for writer, (*_, sources) in WRITERS.items() if sources])
def test_the_source_is_never_the_destination(writer, link, place):
    arguments, name, _, sources = WRITERS[writer]
    Path(name).parent.mkdir(exist_ok=True)
    for source in sources:
        if not Path(source).exists():
            assert run(*GENERATE, "--outdir=out").exit_code == 0
        before = Path(source).read_bytes()
        link(Path(source).absolute(), name)
        refused(*arguments(name))
        assert Path(source).read_bytes() == before


def test_a_model_folder_keeps_its_configuration(place):
    assert run("convert", "tiny.safetensors", "model").exit_code == 0
    assert "are the same" in refused("verify", "--network=model", "--device=cpu", "--json=model/config.json")


def test_readme(place):
    """Line ends stay, and what is no README is named."""
    assert run("bench", "--readme=README.md", "--results=.").exit_code == 0
    data = Path("README.md").read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n") > 3
    for path in ("detector.pt", "pages.txt", "images", "none.md"):
        Path("pages.txt").write_text("no marks")
        assert path in refused("bench", f"--readme={path}", "--results=.")


@pytest.mark.parametrize("verb", sorted(PATHS.keys() - {"train"}))
def test_help_shows_every_default(verb):
    command = COMMANDS[verb]
    for p in command.params:
        if isinstance(p, click.Option) and not p.is_flag and not p.required:
            _, text = p.get_help_record(click.Context(command))
            assert "default: " in text, f"{verb} {p.opts[0]}: {text}"
