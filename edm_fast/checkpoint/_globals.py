"""The allow-list: every (module, name) pair a published checkpoint may contain, and what each one means here."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from edm_fast.checkpoint._foreign import Foreign, canonical, foreign, refuse_global
from edm_fast.checkpoint._records import (
    MAX_DIMS,
    Budget,
    CheckpointError,
    Global,
    ModuleDictRecord,
    NumpyArray,
    NumpyDtype,
    Persistent,
    Storage,
    TensorRecord,
    is_count,
    make_tensor_record,
)
from edm_fast.checkpoint._unpickle import Reader, plain_keys

PRECONDITIONERS = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond", "Precond")
NETWORKS = ("SongUNet", "DhariwalUNet", "UNet")
LAYERS = (
    *("UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding", "FourierEmbedding"),
    *("Block", "MPConv", "MPFourier"),
)
LOSSES = ("VPLoss", "VELoss", "EDMLoss", "EDM2Loss")
CLASS_NAMES = frozenset((*PRECONDITIONERS, *NETWORKS, *LAYERS, *LOSSES, "AugmentPipe"))

META_KEYS = {"type", "version", "module_src", "class_name", "state"}
META_VERSION = 6

STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# numpy type code -> struct letter
SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
SCALARS |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}
ARRAY_DTYPES = {"f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32}
ARRAY_DTYPES |= {"i2": torch.int16, "i1": torch.int8, "u1": torch.uint8, "b1": torch.bool}

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's old file layout
OLD_LAYOUT_PROTOCOL = 1001


class StorageRules:
    """Inside the bytes of a storage: one storage class, one persistent id, otherwise plain data."""

    def __init__(self) -> None:
        self.declared: tuple[str, torch.dtype, int] | None = None

    def find_global(self, module: str, name: str) -> Global:
        if module == "torch" and name in STORAGE_DTYPES:
            return Global(module, name)
        raise refuse_global(module, name)

    def reduce(self, function: Any, args: tuple[Any, ...]) -> Any:
        raise CheckpointError("damaged pickle: a call inside the bytes of a storage")

    new_object = build = reduce

    def persistent_id(self, pid: Any) -> str:
        key, self.declared = read_storage_id(pid)[0], read_storage_id(pid)
        return key


class SnapshotRules:
    """The objects of a snapshot or training state. `storage_of` resolves persistent ids (files of torch.save only)."""

    def __init__(self, budget: Budget, storage_of: Callable[[Any], Any] | None = None):
        self.budget = budget
        self.storage_of = storage_of

    def find_global(self, module: str, name: str) -> Global | Foreign:
        known = canonical(module, name)
        if known in CALLS or known in CLASSES:
            return Global(*known)
        if module == "torch" and name in STORAGE_DTYPES:
            if self.storage_of is None:
                raise refuse_global(module, name)
            return Global(module, name)
        return foreign(module, name)

    def reduce(self, function: Any, args: tuple[Any, ...]) -> Any:
        if isinstance(function, Foreign) and function.args is None:
            return function.instance(args)
        call = CALLS.get((function.module, function.name)) if isinstance(function, Global) else None
        if call is None:
            raise CheckpointError("damaged pickle: a call of something that is not a function of the allow-list")
        return call(self, args)

    def new_object(self, cls: Any, args: tuple[Any, ...]) -> Any:
        if isinstance(cls, Foreign) and cls.args is None:
            return cls.instance(args)
        kind = CLASSES.get((cls.module, cls.name)) if isinstance(cls, Global) else None
        if kind is None or args:
            raise CheckpointError("damaged pickle: an object of a class that is not on the allow-list")
        return kind()

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, ModuleDictRecord | Persistent) and isinstance(state, dict):
            target.state = state
        elif isinstance(target, Foreign) and target.args is not None:
            target.state = state
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            pass  # attributes of the dict itself: torch keeps version numbers there (state_dict()._metadata)
        elif isinstance(target, NumpyDtype) and isinstance(state, tuple):
            if len(state) != 8 or state[0] != 3 or state[1] not in ("<", "|", "=") or state[2:5] != (None, None, None):
                raise CheckpointError("a numpy type that is not a plain number")
            target.byte_order = "<"
        elif isinstance(target, NumpyArray) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, column_major, raw = state
            target.tensor = _array_tensor(raw, dtype, shape, column_major)
        else:
            raise CheckpointError("damaged pickle: state for an object that takes none")

    def persistent_id(self, pid: Any) -> Any:
        if self.storage_of is None:
            raise CheckpointError("damaged pickle: a reference to data outside the pickle")
        return self.storage_of(pid)


def read_storage_id(pid: Any) -> tuple[str, torch.dtype, int]:
    """('storage', class, key, device, numel[, None]) -> key, dtype, numel. The device is ignored."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or not isinstance(pid[0], str) or pid[0] != "storage":
        raise CheckpointError("damaged checkpoint: a malformed reference to a storage")
    kind, key, device, numel = pid[1:5]
    if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES or not isinstance(device, str):
        raise CheckpointError("damaged checkpoint: a malformed reference to a storage")
    if not isinstance(key, str) or not isinstance(numel, int) or not 0 <= numel < 2**60 or (len(pid) == 6 and pid[5]):
        raise CheckpointError("damaged checkpoint: a malformed reference to a storage")
    return key, STORAGE_DTYPES[kind.name], numel


def read_old_layout(data: memoryview, rules: Any, budget: Budget) -> tuple[Any, Any, int]:
    """torch's old file layout: five pickles (magic, protocol, system, object, storage keys), then the storages.

    -> object (read by `rules`), keys, position of the first storage.
    """
    plain = StorageRules()
    position, values = 0, []
    for each in (plain, plain, plain, rules, plain):
        reader = Reader(data, each, budget, position)
        values.append(reader.load())
        position = reader.position
        if type(values[0]) is not int or values[0] != MAGIC:
            raise CheckpointError("damaged checkpoint: storage bytes that are not in torch's old layout")
    _, protocol, system, value, keys = values
    if type(protocol) is not int or protocol != OLD_LAYOUT_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError("storage bytes of an unknown layout")
    if system.get("little_endian") is not True:
        raise CheckpointError("storage bytes of a big-endian machine; only little-endian is supported")
    return value, keys, position


def read_storage_bytes(data: memoryview, budget: Budget) -> Storage:
    """One storage in the old layout: the object is its persistent id, then int64 numel and raw values."""
    rules = StorageRules()
    key, keys, position = read_old_layout(data, rules, budget)
    if rules.declared is None or type(keys) is not list or len(keys) != 1 or type(keys[0]) is not str:
        raise CheckpointError("storage bytes of an unknown layout")
    name, dtype, numel = rules.declared
    if type(key) is not str or key != name or keys[0] != name:
        raise CheckpointError("storage bytes of an unknown layout")
    raw = data[position:]
    if len(raw) != 8 + numel * dtype.itemsize or struct.unpack("<q", raw[:8])[0] != numel:
        raise CheckpointError(f"a storage of {numel} elements has {max(len(raw) - 8, 0)} bytes")
    return Storage(dtype, raw[8:], numel)


def _persistent_object(rules: SnapshotRules, args: tuple[Any, ...]) -> Persistent | Foreign:
    """A stored object; one that is not as the published code writes it stays a record of what was stored."""
    meta = args[0] if len(args) == 1 else None
    if not isinstance(meta, dict):
        raise CheckpointError("a stored object with unexpected fields")
    kind, version, source, name, state = (meta.get(k) for k in ("type", "version", "module_src", "class_name", "state"))
    if set(meta) != META_KEYS:
        fault = "a stored object with unexpected fields"
    elif not isinstance(kind, str) or kind != "class" or type(version) is not int or version != META_VERSION:
        fault = f"a stored object of another version; expected {META_VERSION}"
    elif not isinstance(source, str) or not isinstance(name, str) or not isinstance(state, dict):
        fault = "a stored object with malformed fields"
    else:
        return Persistent(name, state, source)
    shown = name if isinstance(name, str) and name.isidentifier() else "object"
    return Foreign("torch_utils.persistence", shown[:100], fault, (), state)


def _tensor(rules: SnapshotRules, args: tuple[Any, ...]) -> Any:
    if len(args) not in (6, 7):
        raise CheckpointError("a tensor with malformed arguments")
    return make_tensor_record(*args[:4])


def _parameter(rules: SnapshotRules, args: tuple[Any, ...]) -> Any:
    """(tensor, requires_grad, hooks), and the attributes of a parameter that was given some."""
    if len(args) not in (3, 4):
        raise CheckpointError("a parameter with malformed arguments")
    return args[0]


def _storage(rules: SnapshotRules, args: tuple[Any, ...]) -> Storage:
    if len(args) != 1 or not isinstance(args[0], memoryview):
        raise CheckpointError("a storage without bytes")
    return read_storage_bytes(args[0], rules.budget)


def _dtype(rules: SnapshotRules, args: tuple[Any, ...]) -> NumpyDtype | Foreign:
    if len(args) not in (1, 3) or not isinstance(args[0], str) or args[0] not in SCALARS:
        return Foreign("numpy", "dtype", "a numpy type that is not a plain number", args)
    return NumpyDtype(args[0])


def _scalar(rules: SnapshotRules, args: tuple[Any, ...]) -> float | int | bool | Foreign:
    """A numpy number becomes the equal Python number: it then acts without dtype promotion, as published."""
    if len(args) == 2 and isinstance(args[0], Foreign):
        return args[0].instance(args)
    if len(args) != 2 or not isinstance(args[0], NumpyDtype) or not isinstance(args[1], memoryview):
        raise CheckpointError("a numpy number with malformed arguments")
    layout = "<" + SCALARS[args[0].code]
    if len(args[1]) != struct.calcsize(layout):
        raise CheckpointError("a numpy number with malformed arguments")
    return struct.unpack(layout, args[1])[0]


def _array_tensor(raw: Any, dtype: Any, shape: Any, column_major: Any) -> TensorRecord | None:
    """None of what is not plain numbers: text, or objects, which have been read as records."""
    kind = ARRAY_DTYPES.get(dtype.code) if isinstance(dtype, NumpyDtype) else None
    if kind is None or not isinstance(raw, memoryview):
        return None
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
        raise CheckpointError("a numpy array with a malformed shape")
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise CheckpointError(f"a numpy array of shape {list(shape)} has {len(raw)} bytes")
    order = range(len(shape)) if column_major else range(len(shape) - 1, -1, -1)
    strides, step = [0] * len(shape), 1
    for axis in order:
        strides[axis], step = step, step * shape[axis]
    return make_tensor_record(Storage(kind, raw, len(raw) // kind.itemsize), 0, shape, tuple(strides))


def _array(rules: SnapshotRules, args: tuple[Any, ...]) -> NumpyArray:
    """An array to be filled: (ndarray, (0,), b"b")."""
    if len(args) != 3 or not isinstance(args[0], Global) or (args[0].module, args[0].name) != ("numpy", "ndarray"):
        raise CheckpointError("damaged pickle: a numpy array of another class")
    return NumpyArray()


def _array_of_buffer(rules: SnapshotRules, args: tuple[Any, ...]) -> NumpyArray:
    """(bytes, dtype, shape, order), as protocol 5 has it."""
    if len(args) != 4 or args[3] not in ("C", "F"):
        raise CheckpointError("a numpy array with malformed arguments")
    return NumpyArray(_array_tensor(*args[:3], args[3] == "F"))


def _no_call(rules: SnapshotRules, args: tuple[Any, ...]) -> Any:
    raise CheckpointError("damaged pickle: a numpy array made by its class")


def _ordered_dict(rules: SnapshotRules, args: tuple[Any, ...]) -> dict[Any, Any]:
    if args:
        raise CheckpointError("an ordered dict with arguments")
    return OrderedDict()


def _set(rules: SnapshotRules, args: tuple[Any, ...]) -> set[Any]:
    items = args[0] if len(args) == 1 else []
    if not isinstance(items, list) or len(args) > 1:
        raise CheckpointError("a set with malformed arguments")
    rules.budget.spend_instructions(len(items))  # the list may be used again, so its copy is paid for
    return set(plain_keys(items))


def _encode(rules: SnapshotRules, args: tuple[Any, ...]) -> memoryview:
    """Bytes as protocols 0 to 2 write them: text of code points 0 to 255."""
    if len(args) != 2 or not isinstance(args[0], str) or not isinstance(args[1], str) or args[1] != "latin1":
        raise CheckpointError("malformed bytes")
    rules.budget.spend_bytes(len(args[0]))
    return memoryview(args[0].encode("latin1"))


def _accelerated(rules: SnapshotRules, args: tuple[Any, ...]) -> Any:
    """An accelerated network is stored as the network it was made of, and how."""
    if not args:
        raise CheckpointError("an accelerated network without arguments")
    return args[0]


CALLS: dict[tuple[str, str], Callable[[SnapshotRules, tuple[Any, ...]], Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): _ordered_dict,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _no_call,
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_buffer for core in ("core", "_core")},
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("_codecs", "encode"): _encode,
    ("edm_fast.plan", "PlannedUNet"): _accelerated,
}
CLASSES: dict[tuple[str, str], Callable[[], Any]] = {
    ("torch.nn.modules.container", "ModuleDict"): ModuleDictRecord,
    ("dnnlib.util", "EasyDict"): dict,
    **{("edm_fast.networks", name): partial(Persistent, name) for name in (*PRECONDITIONERS, *NETWORKS, *LAYERS)},
}
