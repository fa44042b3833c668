"""The names of the demo models, wherever a network is named."""

import pytest
import torch
from click.testing import CliRunner

import edm_fast
from edm_fast import checkpoint
from edm_fast.cli import main
from edm_fast.evaluation import _networks
from helpers.tiny_networks import tiny_checkpoint


def is_demo(net):
    return net.label_dim == 10 and net.img_resolution == 32 and not net.training


def test_the_name_is_the_model():
    assert is_demo(edm_fast.load("demo")) and is_demo(edm_fast.load("demo", device="cpu"))
    assert is_demo(_networks.open_network("demo"))
    assert checkpoint.inspect("demo") == checkpoint.inspect(checkpoint.demo_path())
    with pytest.raises(edm_fast.UserError, match="sha256 is"):
        edm_fast.load("demo", sha256="0" * 64)
    with pytest.raises(edm_fast.UserError, match="demo"):
        checkpoint.load_training_state("demo")


def test_the_solids():
    net = _networks.open_network("demo-solids")
    assert (net.label_dim, net.img_channels, net.img_resolution) == (8, 3, 32)
    path = checkpoint.demo_path("demo-solids")
    assert checkpoint.inspect("demo-solids") == checkpoint.inspect(path) and path.stat().st_size < 10e6
    with pytest.raises(edm_fast.UserError, match="near names: demo-solids.*one of demo, demo-solids"):
        _networks.check_name("demo-solid")
    with pytest.raises(edm_fast.UserError, match="no sampler has been tuned to demo-solids; expected demo or a file"):
        edm_fast.sampling.load_sampler("demo-solids")
    images = dict(edm_fast.generate(edm_fast.accelerate(net), range(4), num_steps=4, class_idx=0))
    assert all(image.std() > 0.1 for image in images.values())


def test_files_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tiny_checkpoint(tmp_path)
    (tmp_path / "demo").symlink_to(path)
    assert is_demo(edm_fast.load("demo"))
    for name in ("./demo", tmp_path / "demo", (tmp_path / "demo").relative_to(tmp_path)):
        assert edm_fast.load(name).img_resolution == 8
    with pytest.raises(edm_fast.UserError, match="no such file"):
        edm_fast.load("Demo")


def test_convert(tmp_path):
    shown = CliRunner().invoke(main, ["convert", "demo", "--inspect"])
    assert shown.exit_code == 0 and shown.output.startswith("demo: ") and "10 classes" in shown.output
    done = CliRunner().invoke(main, ["convert", "demo", str(tmp_path / "copy.safetensors")])
    assert done.exit_code == 0, done.output
    copy, net = edm_fast.load(tmp_path / "copy.safetensors"), edm_fast.load("demo")
    assert all(map(torch.equal, copy.state_dict().values(), net.state_dict().values()))
