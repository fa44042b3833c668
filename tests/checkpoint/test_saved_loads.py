"""Whatever save() writes load() reads back; what it would not is refused before a byte is written."""

import concurrent.futures
import os
import shutil

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import edm_fast
from edm_fast import checkpoint, networks
from helpers.tiny_networks import UNET, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")

NAMES = ["net.safetensors", "net.pkl", "net"]


def change(function):
    """A case that changes a network in place."""

    def made():
        net = tiny()
        with torch.no_grad():
            function(net)
        return net

    return made


def share_tensors(net):
    net.model.map_layer0.bias = net.model.map_layer1.bias


def cut_out(net):
    """Weights that are views of something larger, and not contiguous."""
    weight = net.model.map_layer0.weight
    weight.data = torch.zeros(2 * weight.shape[1], weight.shape[0])[::2].t().copy_(weight)


def compiled_inside(net):
    net.model = torch.compile(net.model)


class Adapter(torch.nn.Module):
    """A layer with nothing of its own to store."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias


class Subclass(networks.EDMPrecond):
    def forward(self, x, *args, **kwargs):
        return 2 * super().forward(x, *args, **kwargs)


def adapt(net):
    net.model.map_layer0 = Adapter(net.model.map_layer0)


def low_rank(net):
    net.model.map_layer0.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(2, 8)))


def integers(net):
    net.model.map_layer0.weight = torch.nn.Parameter(net.model.map_layer0.weight.to(torch.int8), requires_grad=False)


WRITTEN = {
    "compiled": lambda: torch.compile(tiny()),
    "model compiled": change(compiled_inside),
    "net.compile()": change(lambda net: net.compile()),
    "data-parallel": lambda: torch.nn.DataParallel(tiny()),
    "both": lambda: torch.nn.DataParallel(torch.compile(tiny())),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(tiny()),
    "accelerated": lambda: edm_fast.accelerate(tiny()),
    "training": change(lambda net: net.train().requires_grad_(True)),
    "half": change(lambda net: net.half()),
    "bfloat16": change(lambda net: net.bfloat16()),
    "float64": change(lambda net: net.double()),
    "channels last": change(lambda net: net.to(memory_format=torch.channels_last)),
    "shared": change(share_tensors),
    "views": change(cut_out),
    "not numbers": change(lambda net: net.model.map_layer0.bias.fill_(torch.nan)),
    "hooks": change(lambda net: net.model.register_forward_hook(lambda *_: None)),
}
REFUSED = {
    "weight_norm": (change(lambda net: parametrizations.weight_norm(net.model.map_layer0)), "misses 1 of"),
    "spectral_norm": (change(lambda net: parametrizations.spectral_norm(net.model.map_layer0)), "misses 1 of"),
    "pruned": (change(lambda net: prune.l1_unstructured(net.model.map_layer0, "weight", 0.5)), "misses 1 of"),
    "low rank": (change(low_rank), "1 tensors too many, the first is 'model.map_layer0.lora_A'"),
    "adapter": (change(adapt), "'model.map_layer0' is Adapter, not Linear"),
    "subclass": (lambda: Subclass(**UNET), "cannot save a Subclass .a subclass of EDMPrecond"),
    "inner network": (lambda: tiny().model, "cannot save a SongUNet"),
    "state_dict": (lambda: tiny().state_dict(), "cannot save a OrderedDict"),
    "no weights": (lambda: tiny().to("meta"), "has no values"),
    "integers": (change(integers), "int8, not floating-point"),
    "attribute": (change(lambda net: setattr(net, "sigma_data", 1.0)), "sigma_data' is '1.0'; .* has 0.5"),
    "keyword": (change(lambda net: net.init_kwargs.update(sigma_data=1.0)), "sigma_data' is '0.5'; .* has 1.0"),
    "keyword of shapes": (change(lambda net: net.init_kwargs.update(model_channels=16)), "its keywords imply"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_written(case, tmp_path):
    net = WRITTEN[case]()
    wanted = {
        name.replace("_orig_mod.", "").replace("module.", ""): tensor for name, tensor in net.state_dict().items()
    }
    for name in NAMES:
        edm_fast.save(net, tmp_path / name)
        again = edm_fast.load(tmp_path / name)
        assert type(again) is networks.EDMPrecond
        for key, tensor in again.state_dict().items():
            assert torch.equal(tensor.nan_to_num(), wanted[key].float().nan_to_num()), (name, key)
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_writing(case, tmp_path):
    make, message = REFUSED[case]
    net = make()
    for name in NAMES:
        with pytest.raises(edm_fast.UserError, match=message) as caught:
            edm_fast.save(net, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_good_file_stays(tmp_path):
    net = tiny()
    for name in NAMES:
        edm_fast.save(net, tmp_path / name)
        with pytest.raises(edm_fast.UserError, match="cannot save"):
            edm_fast.save(REFUSED["low rank"][0](), tmp_path / name)
        again = edm_fast.load(tmp_path / name)
        assert torch.equal(again.model.map_layer0.weight, net.model.map_layer0.weight)


OTHER_ENDINGS = ["y.pt", "y.PT", "y.pth", "y.bin", "y.ckpt", "y.onnx", "y.zip", "y.npz", "y.h5", "y.safetensor"]
OTHER_ENDINGS += ["y.pth.tar", "y.pt/", "y.safetensors/", "y.pkl/"]


@pytest.mark.parametrize("name", OTHER_ENDINGS)
def test_other_endings_make_no_folder(name, tmp_path):
    with pytest.raises(edm_fast.UserError, match="expected NAME.safetensors, NAME.pkl"):
        edm_fast.save(tiny(), f"{tmp_path}/{name}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["file.SAFETENSORS", "file.PKL", "model-v1.5", "run.2024/", "deep/er"])
def test_forms(name, tmp_path):
    path = f"{tmp_path}/{name}"
    edm_fast.save(tiny(), path)
    assert os.path.isdir(path) != name.startswith("file")
    assert edm_fast.load(path).init_kwargs == tiny().init_kwargs


def test_folders(tmp_path, monkeypatch):
    """Two files or none; other files stay; those of another project are not replaced."""
    path = tmp_path / "net"
    monkeypatch.setattr(checkpoint.native, "FORMAT_VERSION", object())  # JSON cannot hold it: fails on the way
    with pytest.raises(TypeError):
        edm_fast.save(tiny(), path)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    path.mkdir()
    (path / "README.md").write_text("mine")
    edm_fast.save(tiny(), path)
    edm_fast.save(tiny(sigma_data=0.25), path)
    assert edm_fast.load(path).sigma_data == 0.25 and (path / "README.md").read_text() == "mine"
    (path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(edm_fast.UserError, match="not edm-fast's and is not replaced"):
        edm_fast.save(tiny(), path)
    (tmp_path / "file").write_text("")
    with pytest.raises(edm_fast.UserError, match="is a file"):
        edm_fast.save(tiny(), tmp_path / "file")
    with pytest.raises(edm_fast.UserError, match="is a folder"):
        os.mkdir(tmp_path / "x.pkl")
        edm_fast.save(tiny(), tmp_path / "x.pkl")


def test_folder_made_in_the_meantime(tmp_path, monkeypatch):
    path, replace = tmp_path / "net", os.replace

    def late(source, target):
        if target == path:
            path.mkdir()
            (path / "other").write_text("")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    edm_fast.save(tiny(), path)
    assert sorted(os.listdir(path)) == ["config.json", "model.safetensors", "other"]
    (tmp_path / "empty").mkdir(mode=0o700)
    edm_fast.save(tiny(), tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", NAMES)
def test_race(name, tmp_path):
    """Threads that save to one name: one of the networks is there, whole."""
    nets = [tiny(), tiny(sigma_data=0.25)]
    for _ in range(3):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda net: edm_fast.save(net, tmp_path / name), nets * 2))  # raises what they raised
    assert edm_fast.load(tmp_path / name).sigma_data in (0.5, 0.25) and os.listdir(tmp_path) == [name]
