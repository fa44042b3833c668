"""edm-fast convert between all formats, and its one-line refusals."""

import os

import pytest
import torch

from edm_fast import checkpoint, networks
from edm_fast.cli import main
from helpers import golden_cases as g

SNAPSHOTS = g.entries("checkpoints", lambda e: e.get("expect") == "load")
SOURCE = str(g.path(SNAPSHOTS[0], SNAPSHOTS[0]["config"]["file"]))


def run(*args):
    """Exit code of the program."""
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, args)])
    return caught.value.code or 0


def state(path, **options):
    return checkpoint.load(path, **options).state_dict()


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_round_the_formats(tmp_path, capsys):
    names = [SOURCE, tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.pkl", tmp_path / "c.safetensors"]
    for source, dest in zip(names, names[1:], strict=False):
        assert run(source, dest) == 0
        out = capsys.readouterr().out
        assert f"wrote {dest}" in out and SNAPSHOTS[0]["config"]["class"] in out
        assert same(state(SOURCE), state(dest))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


def test_training_state(tmp_path):
    for entry in g.entries("checkpoints", lambda e: "param_groups" in e["config"]):
        source = g.path(entry, entry["config"]["file"])
        assert run(source, tmp_path / "net", "--overwrite") == 0
        assert same(state(tmp_path / "net"), state(source, key="net"))


def test_inspect_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for entry in SNAPSHOTS:
        assert run("--inspect", g.path(entry, entry["config"]["file"])) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in (*entry["config"]["state_dict"], *entry["config"]["kwargs"]))
        assert (entry["config"]["loss_fn"] or "loss_fn: None") in out
    assert os.listdir(tmp_path) == []


def test_refusals(tmp_path, capsys):
    (tmp_path / "there").write_text("")
    hostile = [
        str(g.path(e, e["config"]["file"])) for e in g.entries("checkpoints", lambda e: e.get("expect") == "reject")
    ]
    cases = [
        [SOURCE],
        ["--inspect", SOURCE, tmp_path / "x"],
        [tmp_path / "none.pkl", tmp_path / "x"],
        [SOURCE, tmp_path / "there"],
        [SOURCE, tmp_path / "there" / "x.safetensors"],
        [SOURCE, tmp_path / "x", "--key", "net"],
        [SOURCE, tmp_path / "x", "--sha256", "0" * 64],
        *([path, tmp_path / "x"] for path in hostile),
    ]
    for args in cases:
        assert run(*args) == 2, args
        captured = capsys.readouterr()
        assert captured.err.startswith("Error: ") and captured.err.count("\n") == 1, captured.err
        assert os.listdir(tmp_path) == ["there"]


def test_empty_destination(tmp_path, monkeypatch, capsys):
    """It would be the current folder."""
    monkeypatch.chdir(tmp_path)
    assert run(SOURCE, "") == 2 and "empty text; expected a path" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_overwrite(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    assert run(SOURCE, path) == 0
    before = path.read_bytes()
    assert run(SOURCE, path) == 2 and "--overwrite" in capsys.readouterr().err
    assert run(SOURCE, path, "--overwrite") == 0
    assert run(path, path, "--overwrite") == 2
    (tmp_path / "d.pkl").mkdir()
    assert run(SOURCE, tmp_path / "d.pkl", "--overwrite") == 2
    assert path.read_bytes() == before


OTHER_ENDINGS = ["y.pt", "y.PTH", "y.bin", "y.ckpt", "y.onnx", "y.zip", "y.npz", "y.safetensor", "y.pt/", "y.pkl/"]


@pytest.mark.parametrize("name", OTHER_ENDINGS)
def test_other_endings(name, tmp_path, capsys):
    """Not a folder of that name."""
    assert run(SOURCE, f"{tmp_path}/{name}") == 2
    assert "expected NAME.safetensors, NAME.pkl" in capsys.readouterr().err and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["file.SAFETENSORS", "file.PKL", "folder", "model-v1.5", "new/"])
def test_forms(name, tmp_path):
    path = f"{tmp_path}/{name}"
    assert run(SOURCE, path) == 0 and same(state(SOURCE), state(path))
    assert os.path.isdir(path) != name.startswith("file")


def test_same_checkpoint(tmp_path, capsys):
    """Through links, and a folder as well as the weights in it."""
    assert run(SOURCE, tmp_path / "hub") == 0
    weights = tmp_path / "hub" / "model.safetensors"
    before = weights.read_bytes()
    (tmp_path / "link").symlink_to("hub")
    (tmp_path / "link.safetensors").symlink_to(weights)
    os.link(weights, tmp_path / "hard.safetensors")
    for source, dest in [("hub", "link"), ("hub", weights), (weights, "hub"), ("link.safetensors", weights)]:
        assert run(tmp_path / source, tmp_path / dest, "--overwrite") == 2
        assert "are the same" in capsys.readouterr().err
    assert run(tmp_path / "hard.safetensors", tmp_path / "hub", "--overwrite") == 2
    assert weights.read_bytes() == before


def test_folders_that_exist(tmp_path, capsys):
    """One of ours is replaced with --overwrite, other files stay, another project's are not touched."""
    hub, foreign = tmp_path / "hub", tmp_path / "foreign"
    hub.mkdir()
    foreign.mkdir()
    (hub / "README.md").write_text("mine")
    (foreign / "config.json").write_text('{"architectures": []}')
    assert run(SOURCE, hub) == 2 and "--overwrite" in capsys.readouterr().err
    for _ in range(2):
        assert run(SOURCE, hub, "--overwrite") == 0 and same(state(SOURCE), state(hub))
    assert (hub / "README.md").read_text() == "mine"
    assert run(SOURCE, foreign, "--overwrite") == 2 and "not edm-fast's" in capsys.readouterr().err
    assert os.listdir(foreign) == ["config.json"]


def test_a_file_of_another_kind(tmp_path, capsys):
    for name in ("a.safetensors", "a.pkl"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
        assert run(SOURCE, tmp_path / name, "--overwrite") == 2 and "a PNG picture" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == b"\x89PNG\r\n\x1a\n"


def test_keys_and_presets(tmp_path, capsys, monkeypatch):
    net = checkpoint.load(SOURCE)
    kwargs = checkpoint.inspect(SOURCE)["networks"]["ema"]["init_kwargs"]
    monkeypatch.setitem(networks.PRESETS, "tiny", (type(net).__name__, kwargs))
    torch.save({"state_dict": {"net." + k: v for k, v in net.state_dict().items()}, "epoch": 1}, tmp_path / "x.ckpt")
    dest = tmp_path / "y.safetensors"
    for args, message in [
        ([tmp_path / "x.ckpt", dest], "--preset=NAME"),
        ([tmp_path / "x.ckpt", dest, "--preset=tiny", "--key=ema"], "networks in it: 'state_dict'"),
        ([tmp_path / "x.ckpt", dest, "--preset=none"], "expected one of baseline-"),
        ([SOURCE, dest, "--preset=tiny"], "expected no preset"),
        ([SOURCE, dest, "--key=G_ema"], "holds no 'G_ema'; networks in it: 'ema'"),
        (["--inspect", SOURCE, "--key=G_ema"], "holds no 'G_ema'; networks in it: 'ema'"),
        (["--inspect", SOURCE, "--preset=tiny"], "expected DST, too"),
        (["--inspect", SOURCE, "--sha256", "0" * 64], "sha256 is"),
    ]:
        assert run(*args) == 2 and message in capsys.readouterr().err, args
    assert not dest.exists()
    assert run(tmp_path / "x.ckpt", dest, "--preset=tiny") == 0
    assert same(net.state_dict(), state(dest))
    assert run("--inspect", tmp_path / "x.ckpt") == 0 and "state_dict: state_dict, " in capsys.readouterr().out
