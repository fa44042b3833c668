"""save_pkl: the published structure without published source."""

import io
import pickletools
import struct
from types import SimpleNamespace

import pytest
import torch

import edm_fast
from edm_fast import checkpoint, networks
from edm_fast.checkpoint import published
from edm_fast.checkpoint._emit import storage_bytes

KWARGS = {"img_resolution": 8, "img_channels": 3, "label_dim": 2, "model_channels": 8, "channel_mult": [1, 2]}
KWARGS |= {"num_blocks": 1, "attn_resolutions": [4]}


def make(model_type="SongUNet", class_name="EDMPrecond"):
    torch.manual_seed(0)
    net = networks.build(class_name, {**KWARGS, "model_type": model_type})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("class_name", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"])
def test_round_trip(model_type, class_name, tmp_path):
    net = make(model_type, class_name)
    checkpoint.save_pkl(net, tmp_path / "net.pkl", dataset_kwargs={"path": "x.zip", "use_labels": True})
    again = edm_fast.load(tmp_path / "net.pkl")
    assert type(again) is type(net) and again.init_kwargs == net.init_kwargs
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    entries = checkpoint.inspect(tmp_path / "net.pkl")["entries"]
    assert entries == {"loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "x.zip", "use_labels": True}}


def test_no_source_but_our_import(tmp_path):
    """Every text in the file is short, and every stored object's source is one import of edm_fast."""
    checkpoint.save_pkl(make(), tmp_path / "net.pkl")
    data = (tmp_path / "net.pkl").read_bytes()
    texts = [arg for op, arg, _ in pickletools.genops(data) if op.name == "BINUNICODE"]
    sources = {text for text, label in zip(texts[1:], texts, strict=False) if label == "module_src"}
    assert max(map(len, texts)) < 100
    assert sources and all(s.startswith("from edm_fast.") and s.count("\n") == 1 for s in sources)
    for source in sources:
        names = {}
        exec(source, names)  # ours, written a line above
        assert any(isinstance(value, type) for value in names.values())
    used = {arg for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    assert not used, "protocol 4 names globals on the stack"


def test_loss_and_augmentation(tmp_path):
    class EDMLoss(SimpleNamespace):
        pass

    class AugmentPipe(SimpleNamespace):
        pass

    loss, pipe = EDMLoss(P_mean=-1.2, sigma_data=0.5), AugmentPipe(p=0.12, xflip=1e8)
    checkpoint.save_pkl(make(), tmp_path / "net.pkl", loss_fn=loss, augment_pipe=pipe)
    entries = checkpoint.inspect(tmp_path / "net.pkl")["entries"]
    assert entries["loss_fn"] == {
        "class_name": "EDMLoss", "P_mean": -1.2, "sigma_data": 0.5, "_init_args": [], "_init_kwargs": {}
    }  # fmt: skip
    assert entries["augment_pipe"]["xflip"] == 1e8


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("shape", [[], [3], [2, 3], [0]])
def test_storages_are_torch_files(shape):
    """torch's own weights-only reader takes the bytes we write for a storage."""
    tensor = torch.randn(shape)
    storage = torch.load(io.BytesIO(storage_bytes(tensor, "0")), weights_only=True)
    assert list(storage) == tensor.flatten().tolist()


def test_objects_come_back_where_source_is_run(tmp_path):
    """A stand-in for the published reader, which runs module_src: it gets networks of edm_fast that work."""
    net = make().eval()
    checkpoint.save_pkl(net, tmp_path / "net.pkl")
    content = published.read_published(memoryview((tmp_path / "net.pkl").read_bytes()), "pickle")

    def revive(record):
        if isinstance(record, published.TensorRecord):
            return published.to_tensor(record, content.budget)
        if isinstance(record, dict):
            return {key: revive(value) for key, value in record.items()}
        if isinstance(record, published.ModuleDictRecord):
            made = torch.nn.ModuleDict.__new__(torch.nn.ModuleDict)
        elif isinstance(record, published.Persistent):
            names = {}
            exec(record.source, names)
            made = names[record.class_name].__new__(names[record.class_name])
        else:
            return record
        made.__setstate__(revive(record.state))
        return made

    again = revive(content.objects["ema"])
    x, sigma = torch.randn(1, 3, 8, 8), torch.ones(1)
    with torch.no_grad():
        assert torch.equal(again(x, sigma), net(x, sigma))


def test_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="cannot save a Linear"):
        checkpoint.save_pkl(torch.nn.Linear(2, 2), tmp_path / "x.pkl")
    with pytest.raises(checkpoint.CheckpointError, match="no such class"):
        checkpoint.save_pkl(make(), tmp_path / "x.pkl", loss_fn=SimpleNamespace())
    with pytest.raises(checkpoint.CheckpointError, match="cannot write a object"):
        checkpoint.save_pkl(make(), tmp_path / "x.pkl", dataset_kwargs={"x": object()})
    deep = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(checkpoint.CheckpointError, match="deeply"):
        checkpoint.save_pkl(make(), tmp_path / "x.pkl", dataset_kwargs={"x": deep})
    assert not list(tmp_path.iterdir())


def test_hooks_are_left_out(tmp_path):
    net = make()
    net.model.register_forward_hook(lambda *_: None)
    checkpoint.save_pkl(net, tmp_path / "net.pkl", dataset_kwargs={"seed": -(2**40), "t": (1, 2.5), "none": None})
    assert checkpoint.inspect(tmp_path / "net.pkl")["entries"]["dataset_kwargs"]["seed"] == -(2**40)
    assert struct.unpack("<B", (tmp_path / "net.pkl").read_bytes()[1:2]) == (4,)
