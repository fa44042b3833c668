"""Hand-made pickles for the tests, hostile ones included: each helper returns the instructions that push one value."""

import struct

NONE = b"N"
EMPTY_TUPLE = b")"


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def raw_bytes(value):
    return b"B" + struct.pack("<I", len(value)) + value


def array(*items):
    return b"(" + b"".join(items) + b"t"


def mapping(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def call(module, attribute, *args):
    return name(module, attribute) + array(*args) + b"R"


def ordered_dict():
    return call("collections", "OrderedDict")


def persistent(class_name="EDMPrecond", state=None, **changes):
    meta = {"type": text("class"), "version": integer(6), "module_src": text(""), "class_name": text(class_name)}
    meta |= {"state": state if isinstance(state, bytes) else mapping(state or {}), **changes}
    return call("torch_utils.persistence", "_reconstruct_persistent_obj", mapping(meta))


def storage(count=2, declared=None, kind=b"ctorch\nFloatStorage\n", magic=0x1950A86A20F9469CFC6C, key="0", extra=b""):
    """The bytes of a float32 storage in torch's old layout; `declared`: the element count it claims to have."""
    declared = count if declared is None else declared
    system = mapping({"little_endian": b"\x88"})
    reference = b"(" + text("storage") + kind + text(key) + text("cpu") + integer(declared) + b"NtQ"
    parts = [integer(magic), integer(1001), system, reference, b"](" + text(key) + b"e"]
    return b"".join(b"\x80\x02" + p + b"." for p in parts) + struct.pack("<q", declared) + bytes(4 * count) + extra


def tensor(size, stride, offset=0, data=None):
    source = call("torch.storage", "_load_from_bytes", raw_bytes(storage() if data is None else data))
    shape = array(*map(integer, size)), array(*map(integer, stride))
    return call("torch._utils", "_rebuild_tensor_v2", source, integer(offset), *shape, b"\x89", ordered_dict())


def module(parameters=None, modules=None, **rest):
    parts = {"_parameters": mapping(parameters or {}), "_buffers": mapping({}), "_modules": mapping(modules or {})}
    return parts | rest


def snapshot(ema, **rest):
    """A whole file."""
    return b"\x80\x04" + mapping({"ema": ema, **rest}) + b"."
