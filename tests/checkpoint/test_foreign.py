"""Snapshots of forks: what this package does not know stays an inert record, unless the wanted network needs it."""

import argparse
import collections
import datetime
import functools
import io
import pathlib
import pickle
import struct

import numpy as np
import pytest
import torch

import edm_fast
from edm_fast import checkpoint
from edm_fast.cli import main
from helpers import hand_pickles as p
from helpers.hostile_checkpoints import INIT, refused
from helpers.tiny_networks import tiny


def number(value):
    return b"G" + struct.pack(">d", value)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a snapshot in the published structure."""
    path = tmp_path_factory.mktemp("good") / "net.pkl"
    checkpoint.save_pkl(tiny(), path)
    return path.read_bytes()


def with_entries(good, **entries):
    """The snapshot with entries added or replaced."""
    return good[:-1] + b"(" + b"".join(p.text(key) + value for key, value in entries.items()) + b"u."


def pickled(value):
    """The instructions of Python's own pickle of a value, without its protocol and end."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, 4)
    pickler.fast = True  # no memo, whose numbers would clash
    pickler.dump(value)
    data = out.getvalue()
    return data[11:-1] if data[2:3] == b"\x95" else data[2:-1]


def state_of(value):
    return p.persistent("AmbientLoss", {"sigma_data": number(value), "P_mean": p.NONE}, module_src=p.text("import os"))


LOADED = {
    "loss": {"loss_fn": state_of(0.5)},
    "augmentation": {"augment_pipe": p.persistent("MyPipe", {"p": number(0.1)})},
    "data set": {"dataset": p.persistent("MyDataset")},
    "version": {"loss_fn": p.persistent("EDMLoss", version=p.integer(7))},
    "type": {"loss_fn": p.persistent("EDMLoss", type=p.text("func"))},
    "fields": {"loss_fn": p.persistent("EDMLoss", extra=p.NONE)},
    "other network": {"net": p.persistent("MyPrecond", p.module(**INIT))},
    "other layer": {
        "net": p.persistent(state=p.module(modules={"model": p.persistent("MyLayer", p.module())}, **INIT))
    },
    "unknown function": {"x": p.call("some.package", "run", p.text("touch x"))},
    "object": {"x": p.name("some.package", "Thing") + b")\x81}" + p.text("a") + b"K\x01sb"},
    "as a key": {"x": b"}" + p.name("some.package", "Thing") + b"Ns"},
    "plain python": {
        "dataset_kwargs": pickled(
            {
                "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.99)),
                "path": pathlib.PosixPath("/data/x.zip"),
                "when": datetime.datetime(2024, 1, 1),
                "partial": functools.partial(datetime.datetime, 2024),
                "counts": collections.Counter("aab"),
                "lists": collections.defaultdict(list, {(1, 2): [3]}),
                "queue": collections.deque([1]),
                "names": frozenset(["a"]),
                "complex": 1j,
            }
        )
    },
    "torch": {"x": pickled({"dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1, 2])})},
}
for title, array in {"numbers": np.arange(3), "text": np.array(["a"]), "objects": np.array([None])}.items():
    LOADED[f"numpy {title}"] = {"x": pickled(array)}


@pytest.mark.parametrize("case", LOADED)
def test_stays_a_record(case, good, tmp_path, capsys):
    path = tmp_path / "net.pkl"
    path.write_bytes(with_entries(good, **LOADED[case]))
    net = edm_fast.load(path)
    assert torch.equal(net.model.map_layer0.weight, tiny().model.map_layer0.weight)
    (key,) = LOADED[case]
    content = checkpoint.inspect(path)
    assert key in {**content["entries"], **content["networks"]}
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(path), str(tmp_path / "net.safetensors")])
    assert not stopped.value.code and f"  {key}: " in capsys.readouterr().out


def test_records_are_shown(good, tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(with_entries(good, **LOADED["plain python"], **LOADED["loss"], **LOADED["as a key"]))
    entries = checkpoint.inspect(path)["entries"]
    assert entries["loss_fn"] == {"class_name": "AmbientLoss", "sigma_data": 0.5, "P_mean": None}
    assert entries["x"] == {"some.package.Thing": None}
    shown = entries["dataset_kwargs"]
    assert shown["args"] == {"class_name": "argparse.Namespace", "state": {"lr": 1e-3, "betas": [0.9, 0.99]}}
    assert shown["path"] == {"class_name": "pathlib.PosixPath", "args": ["/", "data", "x.zip"]}
    assert shown["lists"]["items"] == [[1, 2], [3]]


LAYER, MODULES = p.persistent("MyConv", p.module()), p.module(**INIT)
WANTED = {
    "class": (p.persistent("MyPrecond", MODULES), "the unknown class 'MyPrecond'; expected one of VPPrecond"),
    "ECT": (p.persistent("ECMPrecond", MODULES), "a consistency model of ECT"),
    "StyleGAN": (p.persistent("Generator", MODULES), "a StyleGAN generator"),
    "version": (p.persistent(version=p.integer(7)), "'ema' cannot be read: a stored object of another version"),
    "layer": (
        p.persistent(state=p.module(modules={"model": LAYER}, **INIT)),
        "its module 'model' is of the unknown class 'MyConv'; expected one of SongUNet",
    ),
    "torch layer": (
        p.persistent(state=p.module(modules={"act": p.name("torch.nn.modules.activation", "SiLU") + b")\x81"}, **INIT)),
        "its module 'act' cannot be read: it asks for 'torch.nn.modules.activation' 'SiLU', which edm-fast",
    ),
    "tensor": (
        p.persistent(state=p.module({"w": p.call("torch._utils", "_rebuild_sparse_tensor", p.NONE)}, **INIT)),
        "'w' is not a tensor: it asks for 'torch._utils' '_rebuild_sparse_tensor'",
    ),
    "keyword": (
        p.persistent(state=p.module(**{**INIT, "_init_kwargs": p.mapping({"dropout": p.name("my.package", "p")})})),
        "keyword 'dropout' of its EDMPrecond cannot be read: it asks for 'my.package' 'p'",
    ),
    "object": (p.name("my.nets", "UNet") + b")\x81", "'ema' cannot be read: it asks for 'my.nets' 'UNet'"),
}


@pytest.mark.parametrize("case", WANTED)
def test_wanted_network(case, good, tmp_path):
    """Refused with what is unknown, in words that do not sound like an attack; other networks of the file load."""
    path = tmp_path / "net.pkl"
    ema, message = WANTED[case]
    path.write_bytes(with_entries(good, ema=ema))
    said = refused(path)
    assert message in said and "refused" not in said and "damaged" not in said
    assert checkpoint.inspect(path)["format"] == "pickle"
    path.write_bytes(with_entries(good, net=ema))
    assert edm_fast.load(path).img_resolution == 8


ON_SIGHT = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
]
ON_SIGHT += [("torch", "load"), ("torch.utils.collect_env", "run"), ("numpy.testing._private.utils", "runstring")]
ON_SIGHT += [("importlib", "import_module"), ("io", "open"), ("shutil", "rmtree"), ("operator", "attrgetter")]
ON_SIGHT += [("some.package", "a.b"), ("some package", "run"), ("numpy", "load"), ("pickle", "loads"), ("sys", "exit")]


@pytest.mark.parametrize("name", ON_SIGHT, ids=".".join)
def test_refused_on_sight(name, good, tmp_path):
    """In an entry that nobody wants, and even if it is not called."""
    path = tmp_path / "net.pkl"
    for value in (p.name(*name), p.call(*name, p.text("x"))):
        path.write_bytes(with_entries(good, note=value))
        for verb in (checkpoint.load, checkpoint.inspect):
            assert f"refused: it asks for {name[0]!r} {name[1]!r}" in refused(path, verb)


@pytest.mark.parametrize("package", ["third_party.edm.", "edm.", "a.b.c."])
def test_other_packages(package, good, tmp_path):
    """Forks keep the published modules in packages of their own."""
    path = tmp_path / "net.pkl"
    easy = p.name(package + "dnnlib.util", "EasyDict") + b")\x81" + p.text("k") + b"K\x05s"
    module = p.text("torch_utils.persistence")
    path.write_bytes(
        with_entries(good.replace(module, p.text(package + "torch_utils.persistence")), dataset_kwargs=easy)
    )
    assert edm_fast.load(path).img_resolution == 8
    assert checkpoint.inspect(path)["entries"]["dataset_kwargs"] == {"k": 5}


OWN_SOURCE = p.text("from edm_fast.networks._precond import EDMPrecond\n")
NOTES = {
    "loss": (
        lambda good: with_entries(good, loss_fn=state_of(1.0)),
        "its loss ('AmbientLoss') has sigma_data 1, its network 0.5",
    ),
    "source": (lambda good: good.replace(OWN_SOURCE, p.text("class EDMPrecond: ...")), "its network source (sha256 "),
    "attribute": (
        lambda good: good.replace(p.text("sigma_data") + number(0.5), p.text("sigma_data") + number(0.7)),
        "its sigma_data was built as 0.5 and later set to 0.7, which is used",
    ),
    "inner attribute": (
        lambda good: good.replace(p.text("skip_scale") + number(0.5**0.5), p.text("skip_scale") + number(0.9), 1),
        "block0.skip_scale' is '0.9'; a network of its keywords has 0.7071067811865476, which is used",
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_notes(case, good, tmp_path, capsys):
    """One warning, in Python and as one line of the program."""
    make, message = NOTES[case]
    path = tmp_path / "net.pkl"
    path.write_bytes(make(good))
    with pytest.warns(checkpoint.CheckpointWarning) as caught:
        net = edm_fast.load(path)
    assert [str(path) in str(w.message) and message in str(w.message) for w in caught] == [True]
    assert net.sigma_data == (0.7 if case == "attribute" else 0.5)
    with pytest.raises(SystemExit):
        main(["convert", str(path), str(tmp_path / "net.safetensors")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: ") and message in line


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", ["", "from edm_fast.networks import EDMPrecond\n"])
def test_nothing_to_note(source, good, tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(with_entries(good.replace(OWN_SOURCE, p.text(source)), loss_fn=state_of(0.5)))
    edm_fast.load(path)
