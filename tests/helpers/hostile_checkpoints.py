"""Hostile pickles by name, and a part of the message each must be refused with."""

import struct

import pytest

from edm_fast import checkpoint
from helpers import hand_pickles as p

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

HOSTILE_SAYS = {
    "frame": "the file is cut short",
    "text8": "the file is cut short",
    "bytes8": "the file is cut short",
    "bytes4": "the file is cut short",
    "long4": "an integer",
    "long4 negative": "an integer of -5 bytes",
    "long1 of 255 bytes": "an integer",
    "number of a million digits": "a text line without end",
    "endless line": "a text line without end",
    "memo index": "holds no 'ema'",
    "memo index as text": "holds no 'ema'",
    "memo of nothing": "a reference to nothing",
    "protocol 6": "a pickle of an unknown protocol",
    "no value": "too few values",
    "two values": "values left over at its end",
    "open mark": "too few values",
    "no mark": "no mark",
    "a list": "holds a list",
    "odd items": "items for something that is not a dict",
    "append to dict": "items for something that is not a list",
    "add to list": "items for something that is not a set",
    "cut": "the file is cut short",
    "deep": "holds a tuple",
    "deep ema": "'ema' is not a network",
    "tuple key": "a dict key of type tuple",
    "tuple in set": "a set item of type tuple",
    "many sets": "has more than 1000000 pickle instructions",
    "eval": "it asks for 'builtins' 'eval'",
    "getattr": "it asks for 'builtins' 'getattr'",
    "torch.load": "it asks for 'torch' 'load'",
    "names beside the allowed": "it asks for 'torch._utils' '_rebuild_tensor_v2.__glo",
    "dotted": "it asks for 'collections' 'abc.sys.modules'",
    "control characters": "it asks for 'a\\n\\x1b[31m' 'bbbbbbbbbbbbbbbbbbbbbbbbb",
    "name that is not text": "a global without a name",
    "module prefix": "it asks for 'torch.storag' 'e._load_from_bytes'",
    "storage class outside": "it asks for 'torch' 'FloatStorage'",
    "call of text": "a call of something that is not a function of the al",
    "call without tuple": "a call without arguments",
    "class called": "a call of something that is not a function of the al",
    "function as class": "an object of a class that is not on the allow-list",
    "class with arguments": "an object of a class that is not on the allow-list",
    "state for a dict": "state for an object that takes none",
    "state for a module dict": "state for an object that takes none",
    "ordered dict of items": "an ordered dict with arguments",
    "persistent id": "a reference to data outside the pickle",
    "inst": "instruction 0x69 does not belong in a checkpoint",
    "obj": "it asks for 'os' 'system'",
    "extension": "instruction 0x82 does not belong in a checkpoint",
    "next buffer": "instruction 0x97 does not belong in a checkpoint",
    "meta version": "a stored object of another version",
    "meta type": "a stored object of another version",
    "meta extra": "a stored object with unexpected fields",
    "meta source": "a stored object with malformed fields",
    "meta state": "a stored object with malformed fields",
    "unknown class": "a stored object of the unknown class 'Backdoor'",
    "not a network": "'ema' is not a network",
    "inner network only": "'ema' is not a network",
    "no ema": "holds no 'ema'",
    "ema none": "'ema' is not a network",
    "positional arguments": "EDMPrecond was built with positional arguments",
    "no keywords": "does not say how its EDMPrecond was built",
    "modules not a dict": "module '' has no _modules",
    "module not a module": "module 'model.' is not a module",
    "parameter not a tensor": "'w' is not a tensor",
    "dotted part": "module '' has a part with a malformed name",
    "itself inside": "modules nested too deeply",
    "modules shared": "has more than 1000000 pickle instructions",
    "keywords shared": "data nested too deeply",
    "unknown keyword": "EDMPrecond with DhariwalUNet takes no keyword evil",
    "keyword type": "network keyword model_channels='8'",
    "huge network": "its keywords imply more memory than its tensors take",
    "many blocks": "network keyword num_blocks='1000000000'",
    "many levels": "keyword 'channel_mult' is too long",
    "huge integer": "network keyword img_resolution='25822498780869085896",
    "nan": "network keyword sigma_data='nan'",
    "dict keyword": "keyword 'dropout' is too long",
    "model type": "model_type='os.system'",
    "beyond storage": "a tensor reaches beyond its storage of 2 elements",
    "stride 0": "a tensor",
    "stride 0 and 1": "a tensor",
    "overflow": "a tensor reaches beyond its storage of 2 elements",
    "more than int64": "a tensor with malformed sizes",
    "negative size": "a tensor with malformed sizes",
    "negative stride": "a tensor with malformed sizes",
    "negative offset": "a tensor with malformed sizes",
    "offset": "a tensor reaches beyond its storage of 2 elements",
    "rank": "a tensor with malformed sizes",
    "uneven": "a tensor with malformed sizes",
    "storage too short": "a storage",
    "storage too long": "a storage of 2 elements has 12 bytes",
    "storage magic": "storage bytes that are not in torch's old layout",
    "storage class": "it asks for 'torch' 'load'",
    "storage key": "a text line without end",
    "storage empty": "the file is cut short",
    "storage not bytes": "a storage without bytes",
    "tensor of nothing": "a tensor without a storage",
    "tensor arguments": "a tensor with malformed arguments",
    "parameter arguments": "a parameter with malformed arguments",
    "wrong tensors": "misses 468",
    "object dtype": "a numpy type that is not a plain number",
    "text dtype": "a numpy type that is not a plain number",
    "structured dtype": "a numpy type that is not a plain number",
    "big-endian dtype": "a numpy type that is not a plain number",
    "scalar size": "a numpy number with malformed arguments",
    "scalar of text": "a numpy number with malformed arguments",
    "encode": "malformed bytes",
    "encode often": "holds more tensor data than its size allows",
    "set often": "has more than 1000000 pickle instructions",
}


def refused(path, verb=checkpoint.load, **options):
    """The one line `verb` refuses the file with."""
    with pytest.raises(checkpoint.CheckpointError) as caught:
        verb(path, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400 and message.startswith(str(path))
    assert "MemoryError" not in message and "RecursionError" not in message
    return message
