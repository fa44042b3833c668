"""Hostile and broken files: each is refused with one CheckpointError, quickly and with little memory."""

import io
import os
import pickle
import resource
import struct
import zipfile

import hand_pickles as p
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import golden_cases as g
from edm_fast import checkpoint
from edm_fast.checkpoint.published import read_published

KWARGS = p.mapping({"img_resolution": p.integer(8), "img_channels": p.integer(3)})
INIT = {"_init_args": p.EMPTY_TUPLE, "_init_kwargs": KWARGS}


def ema(parameters=None, modules=None, **changes):
    return p.persistent(state=p.module(parameters, modules, **{**INIT, **changes}))


def laughs(levels, push=b")", pair=b"\x86"):
    """A value whose parts are shared: 2**levels leaves from a few bytes a level."""
    return push + b"".join(b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + pair for i in range(levels))


def shared_modules(levels):
    """Each module holds the next one twice."""
    out = b"" + p.persistent("Linear", p.module())
    for i in range(levels):
        both = b"}(" + p.text("a") + b"j" + struct.pack("<I", i) + p.text("b") + b"j" + struct.pack("<I", i) + b"u"
        out += b"r" + struct.pack("<I", i) + b"0" + p.persistent("Linear", {**p.module(), "_modules": both})
    return out


def cyclic():
    """A module among its own modules: _modules is remembered, the object made, then put into the remembered dict."""
    state = {"_parameters": b"}", "_buffers": b"}", "_modules": b"}r\x07\0\0\0", **INIT}
    made = p.persistent(state=state)
    return made + b"r\x08\0\0\0" + b"0j\x07\0\0\0" + p.text("model") + b"j\x08\0\0\0s0" + b"j\x08\0\0\0"


def with_kwargs(**kwargs):
    return p.snapshot(
        ema(_init_kwargs=p.mapping({"img_resolution": p.integer(8), "img_channels": p.integer(3), **kwargs}))
    )


def dtype(code, *state):
    out = p.call("numpy", "dtype", p.text(code), b"\x89", b"\x88")
    return out + (p.array(*state) + b"b" if state else b"")


BIG = p.tensor([1000, 1000], [1000, 1])
HOSTILE = {
    # lengths that are not there
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "text8": b"\x80\x04\x8d" + struct.pack("<Q", 2**62),
    "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 2**63),
    "bytes4": b"\x80\x04B" + struct.pack("<I", 2**32 - 1),
    "long4": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "long4 negative": b"\x80\x04\x8b" + struct.pack("<i", -5) + b"\x01.",
    "long1 of 255 bytes": b"\x80\x04\x8a\xff" + bytes(255) + b".",
    "number of a million digits": b"(L" + b"9" * 1_000_000 + b"L\n.",
    "endless line": b"(V" + b"a" * 1_000_000,
    "memo index": b"\x80\x04}r\xf0\xff\xff\xff.",
    "memo index as text": b"}p99999999999999999999\n.",
    "memo of nothing": b"\x80\x04j\x01\0\0\0.",
    # structure
    "protocol 6": b"\x80\x06}.",
    "no value": b"\x80\x04.",
    "two values": b"\x80\x04}}.",
    "open mark": b"\x80\x04}(.",
    "no mark": b"\x80\x04}u.",
    "a list": b"\x80\x04].",
    "odd items": b"\x80\x04}(K\x01u.",
    "append to dict": b"\x80\x04}K\x01a.",
    "add to list": b"\x80\x04](K\x01\x90.",
    "cut": p.snapshot(ema())[:-30],
    "deep": b"\x80\x04)" + b"\x85" * 300_000 + b".",
    "deep ema": p.snapshot(b")" + b"\x85" * 300_000),
    "tuple key": b"\x80\x04}" + laughs(60) + b"Ns.",
    "tuple in set": b"\x80\x04\x8f(" + laughs(60) + b"\x90.",
    "many sets": p.snapshot(b"(" + b"\x8f" * 1_100_000 + b"t"),
    # globals and calls
    "eval": p.snapshot(p.call("builtins", "eval", p.text("1"))),
    "getattr": p.snapshot(p.call("builtins", "getattr", p.text("1"), p.text("real"))),
    "torch.load": p.snapshot(p.call("torch", "load", p.text("x"))),
    "names beside the allowed": p.snapshot(p.name("torch._utils", "_rebuild_tensor_v2.__globals__")),
    "dotted": p.snapshot(p.name("collections", "abc.sys.modules")),
    "control characters": p.snapshot(p.name("a\n\x1b[31m", "b" * 10_000)),
    "name that is not text": b"\x80\x04K\x01K\x02\x93.",
    "module prefix": p.snapshot(p.name("torch.storag", "e._load_from_bytes")),
    "storage class outside": p.snapshot(p.name("torch", "FloatStorage")),
    "call of text": p.snapshot(p.text("os.system") + p.EMPTY_TUPLE + b"R"),
    "call without tuple": p.snapshot(p.name("collections", "OrderedDict") + b"]R"),
    "class called": p.snapshot(p.call("torch.nn.modules.container", "ModuleDict")),
    "function as class": p.snapshot(p.name("torch.storage", "_load_from_bytes") + b")\x81"),
    "class with arguments": p.snapshot(p.name("dnnlib.util", "EasyDict") + p.array(p.NONE) + b"\x81"),
    "state for a dict": p.snapshot(b"}}b"),
    "state for a module dict": p.snapshot(p.name("torch.nn.modules.container", "ModuleDict") + b")\x81](NNeb"),
    "ordered dict of items": p.snapshot(p.call("collections", "OrderedDict", b"](]e")),
    "persistent id": p.snapshot(p.text("x") + b"Q"),
    "inst": b"(ios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\no.",
    "extension": b"\x80\x02\x82\x01.",
    "next buffer": b"\x80\x05\x97.",
    # stored objects
    "meta version": p.snapshot(p.persistent(version=p.integer(7))),
    "meta type": p.snapshot(p.persistent(type=p.text("func"))),
    "meta extra": p.snapshot(p.persistent(extra=p.NONE)),
    "meta source": p.snapshot(p.persistent(module_src=p.NONE)),
    "meta state": p.snapshot(p.persistent(state=b"]")),
    "unknown class": p.snapshot(p.persistent("Backdoor")),
    "not a network": p.snapshot(p.persistent("EDMLoss")),
    "inner network only": p.snapshot(p.persistent("SongUNet", p.module(**INIT))),
    "no ema": p.snapshot(p.NONE).replace(b"ema", b"emu"),
    "ema none": p.snapshot(p.NONE),
    "positional arguments": p.snapshot(ema(_init_args=p.array(p.integer(8)))),
    "no keywords": p.snapshot(ema(_init_kwargs=p.NONE)),
    "modules not a dict": p.snapshot(ema(_modules=b"]")),
    "module not a module": p.snapshot(ema(modules={"model": p.integer(1)})),
    "parameter not a tensor": p.snapshot(ema({"w": p.text("x")})),
    "dotted part": p.snapshot(ema({"a.b": p.tensor([2], [1])})),
    "itself inside": p.snapshot(cyclic()),
    "modules shared": p.snapshot(ema(modules={"model": shared_modules(31)})),
    "keywords shared": with_kwargs(attn_resolutions=laughs(60)),
    # keywords
    "unknown keyword": with_kwargs(evil=p.integer(1)),
    "keyword type": with_kwargs(model_channels=p.text("8")),
    "huge network": with_kwargs(model_channels=p.integer(8192), channel_mult=b"](" + b"K\x40" * 8 + b"e"),
    "many blocks": with_kwargs(num_blocks=p.integer(10**9)),
    "many levels": with_kwargs(channel_mult=b"](" + b"K\x01" * 10_000 + b"e"),
    "huge integer": with_kwargs(img_resolution=p.integer(2**400)),
    "nan": with_kwargs(sigma_data=b"G" + struct.pack(">d", float("nan"))),
    "dict keyword": with_kwargs(dropout=b"}"),
    "model type": with_kwargs(model_type=p.text("os.system")),
    # tensors
    "beyond storage": p.snapshot(ema({"w": BIG})),
    "stride 0": p.snapshot(ema({"w": p.tensor([10**12], [0])})),
    "stride 0 and 1": p.snapshot(ema({"w": p.tensor([10**6, 2], [0, 1])})),
    "overflow": p.snapshot(ema({"w": p.tensor([2**62, 2**62], [2**62, 2**62])})),
    "more than int64": p.snapshot(ema({"w": p.tensor([2**70], [1])})),
    "negative size": p.snapshot(ema({"w": p.tensor([-1], [1])})),
    "negative stride": p.snapshot(ema({"w": p.tensor([2], [-1])})),
    "negative offset": p.snapshot(ema({"w": p.tensor([1], [1], offset=-1)})),
    "offset": p.snapshot(ema({"w": p.tensor([1], [1], offset=2)})),
    "rank": p.snapshot(ema({"w": p.tensor([1] * 1000, [1] * 1000)})),
    "uneven": p.snapshot(ema({"w": p.tensor([1, 1], [1])})),
    "storage too short": p.snapshot(ema({"w": p.tensor([2], [1], data=p.storage(2, declared=10**15))})),
    "storage too long": p.snapshot(ema({"w": p.tensor([2], [1], data=p.storage(2, extra=b"1234"))})),
    "storage magic": p.snapshot(ema({"w": p.tensor([2], [1], data=p.storage(magic=1))})),
    "storage class": p.snapshot(ema({"w": p.tensor([2], [1], data=p.storage(kind=b"ctorch\nload\n"))})),
    "storage key": p.snapshot(ema({"w": p.tensor([2], [1], data=p.storage().replace(b"](X", b"](V"))})),
    "storage empty": p.snapshot(ema({"w": p.tensor([2], [1], data=b"")})),
    "storage not bytes": p.snapshot(p.call("torch.storage", "_load_from_bytes", p.text("x"))),
    "tensor of nothing": p.snapshot(p.call("torch._utils", "_rebuild_tensor_v2", *[p.NONE] * 6)),
    "tensor arguments": p.snapshot(p.call("torch._utils", "_rebuild_tensor_v2")),
    "parameter arguments": p.snapshot(p.call("torch._utils", "_rebuild_parameter")),
    "wrong tensors": p.snapshot(ema({"w": p.tensor([2], [1])})),
    # numpy
    "object dtype": p.snapshot(dtype("O8")),
    "text dtype": p.snapshot(dtype("S8")),
    "structured dtype": p.snapshot(dtype("f8", *[p.integer(3), p.text("<"), b"}", b"N", b"N"], *[b"K\0"] * 3)),
    "big-endian dtype": p.snapshot(dtype("f8", *[p.integer(3), p.text(">"), b"N", b"N", b"N"], *[b"K\0"] * 3)),
    "scalar size": p.snapshot(p.call("numpy.core.multiarray", "scalar", dtype("f8"), p.raw_bytes(b"123"))),
    "scalar of text": p.snapshot(p.call("numpy.core.multiarray", "scalar", p.text("f8"), p.raw_bytes(b"1" * 8))),
    "encode": p.snapshot(p.call("_codecs", "encode", p.text("x"), p.text("rot13"))),
    "encode often": b"\x80\x04"
    + p.text("x" * 100_000)
    + b"r\0\0\0\x000]("
    + (p.name("_codecs", "encode") + b"(j\0\0\0\0" + p.text("latin1") + b"tR") * 20_000
    + b"e.",
    "set often": b"\x80\x04]("
    + b"K\x01" * 100_000
    + b"er\0\0\0\x000]("
    + (p.name("builtins", "set") + b"(j\0\0\0\0tR") * 10_000
    + b"e.",
}


@pytest.fixture
def little_memory():
    """The process may take at most 1 GB more than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path, verb=checkpoint.load, **options):
    with pytest.raises(checkpoint.CheckpointError) as caught:
        verb(path, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400 and message.startswith(str(path))
    assert "MemoryError" not in message and "RecursionError" not in message
    return message


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case, tmp_path, little_memory):
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE[case])
    refused(path)


def test_inspect_refuses_what_explodes(tmp_path):
    """Entries that load() ignores are walked by inspect(), which must not drown in them."""
    path = tmp_path / "file.pkl"
    for hostile in (b")" + b"\x85" * 300_000, laughs(60), laughs(60, p.text("x" * 9_000))):
        path.write_bytes(p.snapshot(p.NONE, dataset_kwargs=hostile))
        refused(path, checkpoint.inspect)


def test_shared_tensors_are_refused(tmp_path):
    """A few bytes must not become many tensors: the copies together may not exceed the file."""
    data = p.tensor([100_000], [1], data=p.storage(100_000)) + b"r\0\0\0\0"
    names = {f"w{i}": b"j\0\0\0\0" for i in range(100)}
    content = read_published(memoryview(p.snapshot(ema({"w": data, **names}))), "pickle")
    network = content.network("ema")
    with pytest.raises(checkpoint.CheckpointError, match="more tensor data"):
        checkpoint.state_dict(network, content.budget)


OTHER_FILES = {
    "empty": (b"", "empty"),
    "web page": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "text": (b"hello", "not a checkpoint"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint"),
    "zeros": (bytes(100), "not a checkpoint"),
    "one byte": (b"\x80", "cut short"),
    "zip of nothing": (b"PK\x03\x04" + bytes(100), "damaged"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_files(case, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OTHER_FILES[case][0])
    assert OTHER_FILES[case][1] in refused(path)


def test_places(tmp_path):
    assert "no such file" in refused(tmp_path / "none.pkl")
    assert "folder without" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    assert "not a regular file" in refused("/dev/zero")
    for name in ("", "a\0b"):
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(name)


# zip layout


def archive(members, compression=zipfile.ZIP_STORED, prefix="a/"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in members.items():
            file.writestr(prefix + name, data)
    return out.getvalue()


def reference(key="0", count=2):
    return (
        b"(" + p.text("storage") + b"ctorch\nFloatStorage\n" + p.text(key) + p.text("cuda:0") + p.integer(count) + b"tQ"
    )


def zip_tensor(source, size=2):
    args = source, p.integer(0), p.array(p.integer(size)), p.array(p.integer(1)), b"\x89", p.ordered_dict()
    return p.call("torch._utils", "_rebuild_tensor_v2", *args)


def state(net=None, optimizer=None):
    net = ema({"w": zip_tensor(reference())}) if net is None else net
    default = p.mapping({"state": b"}", "param_groups": b"](" + p.mapping({"params": b"]"}) + b"e"})
    return b"\x80\x02" + p.mapping({"net": net, "optimizer_state": default if optimizer is None else optimizer}) + b"."


DATA = struct.pack("<2f", 1.5, -2)
ZIPS = {
    "no pickle": archive({"x.png": b"1"}),
    "two pickles": archive({"data.pkl": state(), "b/data.pkl": state(), "data/0": DATA}),
    "hostile": archive({"data.pkl": p.snapshot(p.call("os", "system", p.text("true")))}),
    "no data": archive({"data.pkl": state()}),
    "short data": archive({"data.pkl": state(), "data/0": DATA[:4]}),
    "long data": archive({"data.pkl": state(), "data/0": DATA * 2}),
    "big-endian": archive({"data.pkl": state(), "data/0": DATA, "byteorder": b"big"}),
    "compressed": archive({"data.pkl": state(), "data/0": DATA}, zipfile.ZIP_DEFLATED),
    "bit flipped": archive({"data.pkl": state(), "data/0": DATA}).replace(DATA, DATA[::-1]),
    "cut": archive({"data.pkl": state(), "data/0": DATA})[:-40],
    "reference": archive({"data.pkl": state(zip_tensor(p.text("0") + b"Q")), "data/0": DATA}),
    "reference out of the folder": archive({"data.pkl": state(zip_tensor(reference("../data.pkl"))), "data/0": DATA}),
    "optimizer": archive({"data.pkl": state(optimizer=b"]"), "data/0": DATA}),
    "optimizer groups": archive(
        {"data.pkl": state(optimizer=p.mapping({"state": b"}", "param_groups": b"](}e"})), "data/0": DATA}
    ),
    "optimizer index": archive(
        {
            "data.pkl": state(optimizer=p.mapping({"state": p.mapping({"x": b"}"}), "param_groups": b"]"})),
            "data/0": DATA,
        }
    ),
}


@pytest.mark.parametrize("case", ZIPS)
def test_archives(case, tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(ZIPS[case])
    refused(path, checkpoint.load_training_state)
    refused(path, key="net")


def test_small_archive_is_read(tmp_path):
    """The refusals above are not for want of a readable archive; and a training state has no average."""
    path = tmp_path / "state.pt"
    path.write_bytes(archive({"data.pkl": state(), "data/0": DATA, "byteorder": b"little"}))
    read = checkpoint.load_training_state(path)
    assert read["net"]["w"].tolist() == [1.5, -2]
    assert read["optimizer_state"] == {"state": {}, "param_groups": [{"params": []}]}
    assert 'key="net"' in refused(path)


# what old protocols write, and harmless extras


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(protocol):
    value = {
        "a": [1, -(2**70), 2.5, None, True, False, "é\n"],
        "b": (1,),
        "c": ((1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "d": {},
    }
    value["e"] = {f"k{i}": i for i in range(300)}
    data = pickle.dumps({**value, "s": {"x"}, "again": value["a"]}, protocol)
    if protocol < 2:  # sets need a class of object there
        data = pickle.dumps({**value, "again": value["a"]}, protocol)
    read = read_published(memoryview(data), "pickle").objects
    assert {k: read[k] for k in value} == value
    assert read["again"] is read["a"]
    assert protocol < 2 or read["s"] == {"x"}


def test_extras_are_read():
    easy = p.name("dnnlib.util", "EasyDict") + b")\x81" + p.text("k") + b"K\x05s"
    state = p.array(p.integer(3), p.text("<"), b"N", b"N", b"N", *[b"J\xff\xff\xff\xff"] * 2, b"K\0") + b"b"
    old_bytes = p.call("_codecs", "encode", p.text(struct.pack("<d", 0.5).decode("latin1")), p.text("latin1"))
    number = p.call("numpy.core.multiarray", "scalar", dtype("f8") + state, old_bytes)
    data = p.snapshot(easy, number=number, ints=p.call("__builtin__", "set", b"](K\x01K\x02e"))
    read = read_published(memoryview(data), "pickle").objects
    assert read["ema"] == {"k": 5} and read["ints"] == {1, 2}
    assert read["number"] == 0.5 and type(read["number"]) is float


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_storages_of_torch_itself(dtype):
    """Storages as today's torch writes them, with a strided view; other types than float32 are read, too."""
    whole = (torch.arange(12) % 2 if dtype == torch.bool else torch.arange(12)).to(dtype)
    view = whole.reshape(3, 4).t()[1:]
    content = read_published(memoryview(pickle.dumps({"ema": view})), "pickle")
    record = content.objects["ema"]
    assert torch.equal(checkpoint.to_tensor(record, content.budget), view)


# mutations of real files


GOLDEN = [g.path(e, e["config"]["file"]) for e in g.entries("checkpoints") if "malicious" not in e["config"]["file"]]
HEADS = [path.read_bytes() for path in GOLDEN]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutations(tmp_path_factory, data):
    """Cut or changed golden files: a network or a CheckpointError, nothing else, and no file appears."""
    whole = bytearray(data.draw(st.sampled_from(HEADS)))
    # changes in the first part meet instructions rather than weights; inserted bytes shift all that follows
    limit = data.draw(st.sampled_from([200, 4000, len(whole)]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, limit - 1))
        whole[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole))) :]
    folder = tmp_path_factory.mktemp("mutated")
    path = folder / "file"
    path.write_bytes(whole)
    for verb in (checkpoint.load, checkpoint.load_training_state, checkpoint.inspect):
        try:
            verb(path)
        except checkpoint.CheckpointError as error:
            assert str(error).isprintable() and len(str(error)) < 400
    assert os.listdir(folder) == ["file"]
    path.unlink()
