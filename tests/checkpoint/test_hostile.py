"""Hostile and broken files: each is refused with one CheckpointError, quickly and with little memory."""

import os
import pickle
import resource
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edm_fast import checkpoint
from edm_fast.checkpoint.published import read_published, to_tensor
from helpers import golden_cases as g
from helpers import hand_pickles as p
from helpers.hostile_checkpoints import HOSTILE, HOSTILE_SAYS, dtype, ema, laughs, refused


@pytest.fixture
def little_memory():
    """The process may take at most 1 GB more than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case, tmp_path, little_memory):
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE[case])
    assert HOSTILE_SAYS[case] in refused(path)


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
        checkpoint.state_dict(network)


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
    content = read_published(memoryview(pickle.dumps({"ema": view, "loss_fn": None})), "pickle")
    record = content.objects["ema"]
    assert torch.equal(to_tensor(record, content.budget), view)


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
