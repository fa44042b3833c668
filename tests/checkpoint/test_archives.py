"""torch's zip layout (training states): hostile and damaged archives are refused, a sound one is read."""

import io
import struct
import zipfile

import pytest

from edm_fast import checkpoint
from helpers import hand_pickles as p
from helpers.hostile_checkpoints import ema, refused


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

ZIPS_SAYS = {
    "no pickle": "a zip archive without a pickled object",
    "two pickles": "a zip archive without a pickled object",
    "hostile": "it asks for 'os' 'system'",
    "no data": "a tensor's data is missing",
    "short data": "a storage of 2 elements has 4 bytes",
    "long data": "a storage of 2 elements has 16 bytes",
    "big-endian": "written by a big-endian machine",
    "compressed": "compressed or malformed member",
    "bit flipped": "a member does not match its checksum",
    "cut": "damaged checkpoint",
    "reference": "a malformed reference to a storage",
    "reference out of the folder": "a tensor's data is missing",
    "optimizer": "holds no optimizer state",
    "optimizer groups": "a malformed optimizer state",
    "optimizer index": "a malformed optimizer state",
}


@pytest.mark.parametrize("case", ZIPS)
def test_archives(case, tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(ZIPS[case])
    assert ZIPS_SAYS[case] in refused(path, checkpoint.load_training_state)


def test_small_archive_is_read(tmp_path):
    """The refusals above are not for want of a readable archive; and a training state has no average."""
    path = tmp_path / "state.pt"
    path.write_bytes(archive({"data.pkl": state(), "data/0": DATA, "byteorder": b"little"}))
    read = checkpoint.load_training_state(path)
    assert read["net"]["w"].tolist() == [1.5, -2]
    assert read["optimizer_state"] == {"state": {}, "param_groups": [{"params": []}]}
    assert 'key="net"' in refused(path)
