"""safetensors + JSON: what save writes load reads back bit for bit, and anything that does not fit is refused."""

import json
import math
import os

import pytest
import safetensors
import safetensors.torch
import torch

import edm_fast
from edm_fast import checkpoint, networks

SONG = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8]}
ADM = {"model_type": "DhariwalUNet", "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
CASES = {
    "VPPrecond": {
        **SONG,
        "beta_min": 0.2,
        "encoder_type": "skip",
        "decoder_type": "skip",
        "resample_filter": [1, 3, 3, 1],
    },
    "VEPrecond": {**SONG, "embedding_type": "fourier", "encoder_type": "residual", "sigma_max": 80},
    "iDDPMPrecond": {**ADM, "M": 50, "label_dim": 4, "use_fp16": True},
    "EDMPrecond": {**SONG, "sigma_max": math.inf, "sigma_data": 0.25, "augment_dim": 9, "dropout": 0.1},
}


def make(class_name="EDMPrecond", seed=0):
    torch.manual_seed(seed)
    net = networks.build(class_name, {"img_resolution": 16, "img_channels": 2, **CASES[class_name]})
    for parameter in net.parameters():  # zeros at the start would hide what is lost
        torch.nn.init.normal_(parameter)
    return net.eval()


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    equal = list(x) == list(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
    return equal and type(a) is type(b) and a.init_kwargs == b.init_kwargs


@pytest.mark.parametrize("class_name", CASES)
@pytest.mark.parametrize("name", ["net.safetensors", "net", "deep/er/net.safetensors"])
def test_round_trip(class_name, name, tmp_path):
    net = make(class_name)
    edm_fast.save(net, tmp_path / name)
    rng = torch.get_rng_state()
    again = edm_fast.load(tmp_path / name)
    assert torch.equal(rng, torch.get_rng_state())
    assert same(net, again)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    x, sigma = torch.randn(2, 2, 16, 16), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        assert torch.equal(net(x, sigma), again(x, sigma))
    path = tmp_path / name
    assert sorted(os.listdir(path)) == ["config.json", "model.safetensors"] if path.is_dir() else path.is_file()


def test_weights_do_not_follow_the_file(tmp_path):
    """Weights are copies: rewriting the file under a loaded network changes nothing."""
    path = tmp_path / "net.safetensors"
    edm_fast.save(make(seed=0), path)
    net = edm_fast.load(path)
    edm_fast.save(make(seed=1), path)
    assert same(net, make(seed=0)) and same(edm_fast.load(path), make(seed=1))


def test_folder_is_what_the_hub_expects(tmp_path):
    edm_fast.save(make(), tmp_path / "net")
    config = json.loads((tmp_path / "net/config.json").read_text())
    assert config["class_name"] == "EDMPrecond" and config["init_kwargs"]["img_resolution"] == 16
    assert config["format_version"] == 1 and config["edm_fast_version"] == edm_fast.__version__
    with safetensors.safe_open(tmp_path / "net/model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    # the weights file of a folder loads by itself, too
    assert same(edm_fast.load(tmp_path / "net/model.safetensors"), make())


def test_equal_networks_give_equal_files(tmp_path):
    for name in ("a", "b"):
        edm_fast.save(make(), tmp_path / name)
    for part in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()
    # the library reads what is written here
    stored = safetensors.torch.load_file(tmp_path / "a/model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in make().state_dict().items())


def test_infinity_is_valid_json(tmp_path):
    torch.manual_seed(0)
    net = networks.build("VEPrecond", {"img_resolution": 16, "img_channels": 2, **SONG, "sigma_max": math.inf})
    edm_fast.save(net, tmp_path / "net")
    text = (tmp_path / "net/config.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    assert edm_fast.load(tmp_path / "net").sigma_max == math.inf


def test_training_mode_half_and_views_are_stored_plainly(tmp_path):
    """A network in training, in half precision, with tensors that are views: the file is float32 all the same."""
    net = make().train().half()
    net.model.map_layer0.bias.data = torch.ones(64, dtype=torch.half)[::2]
    edm_fast.save(net, tmp_path / "net.safetensors")
    again = edm_fast.load(tmp_path / "net.safetensors")
    assert all(torch.equal(a.float(), b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_save_refuses_other_modules(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="cannot save a Linear"):
        edm_fast.save(torch.nn.Linear(2, 2), tmp_path / "x.safetensors")
    assert os.listdir(tmp_path) == []


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """The old file stays, no temporary file remains, and the error is an OSError with its reason."""
    path = tmp_path / "net.safetensors"
    edm_fast.save(make(seed=0), path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        edm_fast.save(make(seed=1), path)
    assert os.listdir(tmp_path) == ["net.safetensors"] and same(edm_fast.load(path), make(seed=0))


def rewrite(path, tensors=None, config=None, metadata=None):
    """A safetensors file with some of its parts exchanged."""
    net = make()
    whole = {**checkpoint.native.make_config(net), **(config or {})}
    metadata = {"edm_fast": json.dumps(whole)} if metadata is None else metadata
    safetensors.torch.save_file(net.state_dict() if tensors is None else tensors, path, metadata=metadata)


def kwargs(**changes):
    return {"init_kwargs": {**make().init_kwargs, **changes}}


def state(**changes):
    tensors = {**make().state_dict(), **changes}
    return {k: v for k, v in tensors.items() if v is not None}


BIAS = "model.map_layer0.bias"
REFUSED = {
    "no metadata": ({"metadata": {}}, "without edm-fast's configuration"),
    "not json": ({"metadata": {"edm_fast": "{"}}, "not valid JSON"),
    "deep json": ({"metadata": {"edm_fast": "[" * 100_000}}, "not valid JSON"),
    "long json": ({"metadata": {"edm_fast": " " * 2**20 + "{}"}}, "expected at most"),
    "json list": ({"metadata": {"edm_fast": "[]"}}, "not edm-fast's"),
    "other format": ({"config": {"format": "x"}}, "not edm-fast's"),
    "version": ({"config": {"format_version": 2}}, "format version"),
    "version type": ({"config": {"format_version": True}}, "format version"),
    "class type": ({"config": {"class_name": 1}}, "misses class_name"),
    "kwargs type": ({"config": {"init_kwargs": []}}, "misses class_name"),
    "class": ({"config": {"class_name": "SongUNet"}}, "expected one of VPPrecond"),
    "class of python": ({"config": {"class_name": "os.system"}}, "expected one of VPPrecond"),
    "keyword": ({"config": kwargs(evil=1)}, "no keyword evil"),
    "keyword value": ({"config": kwargs(model_channels=-8)}, "model_channels"),
    "keyword inf": ({"config": kwargs(num_blocks="inf")}, "num_blocks"),
    "other size": ({"config": kwargs(model_channels=16)}, "imply"),
    "huge": ({"config": kwargs(model_channels=8192, channel_mult=[64] * 4)}, "imply"),
    "deeper": ({"config": kwargs(num_blocks=2)}, "misses"),
    "conditional": ({"config": kwargs(label_dim=3)}, "misses 2 of"),
    "missing": ({"tensors": state(**{BIAS: None})}, f"misses 1 of .*{BIAS}"),
    "extra": ({"tensors": state(extra=torch.ones(1))}, "1 tensors too many.*extra"),
    "shape": ({"tensors": state(**{BIAS: torch.ones(31)})}, r"shape \[31\]; .* \[32\]"),
    "dtype": ({"tensors": state(**{BIAS: torch.ones(32).int()})}, "I32; expected one of F32, F16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    path = tmp_path / "net.safetensors"
    options, message = REFUSED[case]
    rewrite(path, **options)
    with pytest.raises(checkpoint.CheckpointError, match=message) as caught:
        edm_fast.load(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


@pytest.mark.parametrize("keep", [9, 100, -1])
def test_cut(keep, tmp_path):
    path = tmp_path / "net.safetensors"
    edm_fast.save(make(), path)
    path.write_bytes(path.read_bytes()[:keep])
    for verb in (checkpoint.load, checkpoint.inspect, checkpoint.load_training_state):
        with pytest.raises(checkpoint.CheckpointError, match="damaged"):
            verb(path)
    edm_fast.save(make(), path)
    with pytest.raises(checkpoint.CheckpointError, match="expected a training-state"):
        checkpoint.load_training_state(path)


def test_folder_parts(tmp_path):
    path = tmp_path / "net"
    edm_fast.save(make(), path)
    config = (path / "config.json").read_text()
    for text, message in [
        ("{", "not valid JSON"),
        (config.replace("0.25", "0.5"), "different networks"),
        (" " * 2**20 + config, "larger than"),
        ("\0", "not valid JSON"),
    ]:
        (path / "config.json").write_text(text)
        with pytest.raises(checkpoint.CheckpointError, match=message):
            edm_fast.load(path)
    (path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        edm_fast.load(path)
    (path / "config.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="without config.json"):
        edm_fast.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="without model.safetensors"):
        edm_fast.load(path)


def test_config_decides_in_a_folder_from_elsewhere(tmp_path):
    """Weights without our metadata are fine beside a config.json."""
    path = tmp_path / "net"
    edm_fast.save(make(), path)
    safetensors.torch.save_file(make().state_dict(), path / "model.safetensors")
    assert same(edm_fast.load(path), make())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device(tmp_path):
    edm_fast.save(make(), tmp_path / "net")
    assert next(edm_fast.load(tmp_path / "net", device="cuda").parameters()).is_cuda


def test_unknown_device(tmp_path):
    edm_fast.save(make(), tmp_path / "net")
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(edm_fast.UserError, match="device"):
            edm_fast.load(tmp_path / "net", device=device)
