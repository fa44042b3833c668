"""A small pickle writer for files in the published structure: it emits names of functions it never imports."""

from __future__ import annotations

import io
import struct
from collections import OrderedDict
from typing import IO, Any

import torch

from edm_fast.checkpoint._globals import MAGIC, META_VERSION, OLD_LAYOUT_PROTOCOL
from edm_fast.checkpoint._records import MAX_DEPTH, CheckpointError, ModuleDictRecord, Persistent, raw_values


class Emitter:
    """Writes values to `file` as one protocol-4 pickle."""

    def __init__(self, file: IO[bytes]):
        self.write = file.write
        self.storages = 0

    def dump(self, value: Any) -> None:
        self.write(b"\x80\x04")
        self.value(value, 0)
        self.write(b".")

    def value(self, value: Any, depth: int) -> None:
        if depth > 8 * MAX_DEPTH:
            raise CheckpointError("cannot write data nested this deeply")
        constants = {None: b"N", True: b"\x88", False: b"\x89"}
        if value is None or isinstance(value, bool):
            self.write(constants[value])
        elif isinstance(value, int):
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.write(b"\x8a" + bytes([len(raw)]) + raw)
        elif isinstance(value, float):
            self.write(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            raw = value.encode("utf-8")
            self.write(b"X" + struct.pack("<I", len(raw)) + raw)
        elif isinstance(value, torch.Tensor):
            self.tensor(value, depth)
        elif isinstance(value, Persistent):
            self.persistent(value, depth)
        elif isinstance(value, ModuleDictRecord):
            self.name("torch.nn.modules.container", "ModuleDict")
            self.write(b")\x81")
            self.value(value.state, depth + 1)
            self.write(b"b")
        else:
            self.container(value, depth)

    def container(self, value: Any, depth: int) -> None:
        if isinstance(value, OrderedDict) and not value:
            self.call("collections", "OrderedDict", (), depth)
        elif isinstance(value, dict):
            self.write(b"}(")
            for key, item in value.items():
                self.value(key, depth + 1)
                self.value(item, depth + 1)
            self.write(b"u")
        elif isinstance(value, tuple):
            self.write(b"(")
            for item in value:
                self.value(item, depth + 1)
            self.write(b"t")
        elif isinstance(value, list):
            self.write(b"](")
            for item in value:
                self.value(item, depth + 1)
            self.write(b"e")
        elif isinstance(value, set) and not value:
            self.write(b"\x8f")
        else:
            raise CheckpointError(f"cannot write a {type(value).__name__} in the published structure")

    def name(self, module: str, name: str) -> None:
        self.value(module, 0)
        self.value(name, 0)
        self.write(b"\x93")

    def call(self, module: str, name: str, args: tuple[Any, ...], depth: int) -> None:
        self.name(module, name)
        self.value(args, depth + 1)
        self.write(b"R")

    def persistent(self, record: Persistent, depth: int) -> None:
        meta = {
            "type": "class",
            "version": META_VERSION,
            "module_src": record.source,
            "class_name": record.class_name,
            "state": record.state,
        }
        self.call("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,), depth)

    def tensor(self, value: torch.Tensor, depth: int) -> None:
        """_rebuild_tensor_v2(_load_from_bytes(...), ...), inside _rebuild_parameter for a parameter."""
        if isinstance(value, torch.nn.Parameter):
            self.name("torch._utils", "_rebuild_parameter")
            self.write(b"(")
        kept = value.dtype if value.dtype == torch.float16 else torch.float32
        plain = value.detach().to("cpu", kept).contiguous()
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.write(b"(")
        self.name("torch.storage", "_load_from_bytes")
        raw = storage_bytes(plain, str(self.storages))
        self.storages += 1
        self.write(b"B" + struct.pack("<I", len(raw)) if len(raw) < 2**32 else b"\x8e" + struct.pack("<Q", len(raw)))
        self.write(raw)
        self.write(b"\x85R")
        parts: tuple[Any, ...] = (0, tuple(plain.shape), tuple(plain.stride()), False, OrderedDict())
        for part in parts:
            self.value(part, depth + 1)
        self.write(b"tR")
        if isinstance(value, torch.nn.Parameter):
            self.value(False, depth)
            self.value(OrderedDict(), depth)
            self.write(b"tR")


def storage_bytes(tensor: torch.Tensor, key: str) -> bytes:
    """A contiguous tensor of float32 or float16 as a storage in torch's old file layout."""
    out = io.BytesIO()
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": OLD_LAYOUT_PROTOCOL, "little_endian": True, "type_sizes": sizes}
    for value in (MAGIC, OLD_LAYOUT_PROTOCOL, system):
        _dump_old(out, value)
    text, numel = _old_text(key), tensor.numel()
    kind = b"HalfStorage" if tensor.dtype == torch.float16 else b"FloatStorage"
    out.write(b"\x80\x02(" + _old_text("storage") + b"ctorch\n" + kind + b"\n" + text + _old_text("cpu"))
    number = b"J" + struct.pack("<i", numel) if numel < 2**31 else b"\x8a\x08" + struct.pack("<q", numel)
    out.write(number + b"NtQ.")
    out.write(b"\x80\x02]" + text + b"a.")
    out.write(struct.pack("<q", numel))
    out.write(raw_values(tensor))
    return out.getvalue()


def _old_text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _dump_old(out: IO[bytes], value: Any) -> None:
    """Plain data uses only instructions that protocol 2 knows, too."""
    body = io.BytesIO()
    Emitter(body).value(value, 0)
    out.write(b"\x80\x02" + body.getvalue() + b".")
