"""The bytes of a checkpoint file: memory-mapped, recognised by content, zip members found without unpacking."""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from edm_fast.checkpoint._globals import MAGIC, read_storage_id
from edm_fast.checkpoint._records import CheckpointError, Storage, quote
from edm_fast.files import mistaken

FORMATS = "expected a published .pkl, a training-state, a .safetensors file or a folder holding one"


def map_file(path: Path) -> memoryview:
    """The whole file, read-only. The mapping lives as long as the view or anything cut from it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a named pipe would block
        raise CheckpointError(f"not a regular file; {FORMATS}")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError(f"the file is empty; {FORMATS}")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


GLOBAL = re.compile(rb"c[\w.]+\n[\w.]+\n")  # a pickle of protocol 0 that is an object; other text may begin with c, too
OLD_LAYOUT = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."  # the first of its pickles

# other kinds of files by their first bytes: what they are, what to do
OTHERS: list[tuple[tuple[bytes, ...], str]] = [
    ((b"%PDF",), "a PDF document"),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF"), "a picture"),
    ((b"\x93NUMPY",), "a NumPy array (.npy)"),
    ((b"\x89HDF",), "an HDF5 file (Keras?)"),
    ((b"GGUF",), "a GGUF file"),
    (
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!"),
        "a compressed file (unpack it first)",
    ),
    ((b"PK\x05\x06",), "an empty zip archive"),
    ((b"\x7fELF", b"MZ"), "a program"),
]


def recognise(data: memoryview) -> str:
    """`pickle`, `zip`, `old layout` (torch before 1.6) or `safetensors`, from the first bytes."""
    head = bytes(data[:512])
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[4:9] == b"\0\0\0\0{":  # a header of less than 4 GiB, and its first character
        return "safetensors"
    if head.startswith(OLD_LAYOUT):
        return "old layout"
    if head[0] == 0x80 or head[:1] in b"(}" or GLOBAL.match(head):  # protocol 2 and later; protocols 0 and 1
        return "pickle"
    found = mistaken(head)
    if found is not None:
        raise CheckpointError(f"{found}; {FORMATS}")
    if head.lstrip().startswith((b"{", b"[")):
        raise CheckpointError("JSON text, not a checkpoint; a configuration is read with the weights it belongs to")
    for starts, what in OTHERS:
        if head.startswith(starts):
            raise CheckpointError(f"{what}, not a checkpoint; {FORMATS}")
    if data[257:262] == b"ustar":
        raise CheckpointError(f"a tar archive, not a checkpoint; unpack it first; {FORMATS}")
    if head[0] == 0x08 and head[1] < 32 and head[2:3] in (b"\x12", b"\x3a"):  # ir_version, then producer or graph
        raise CheckpointError(f"an ONNX model, not a checkpoint: its weights cannot be read back; {FORMATS}")
    raise CheckpointError(f"not a checkpoint; {FORMATS}")


def describe_folder(path: Path) -> str:
    """What a folder without weights of this package seems to be."""
    names = sorted(os.listdir(path))
    runs = [n for prefix in ("training-state-", "network-snapshot-") for n in names if n.startswith(prefix)]
    files = runs or [n for n in names if n.lower().endswith((".pkl", ".pt", ".pth", ".safetensors", ".ckpt", ".bin"))]
    if "model_index.json" in names or any("diffusion_pytorch_model" in name for name in names):
        return "a folder of diffusers, whose networks edm-fast does not read"
    if runs:
        return f"a folder of a training run; expected one of its files, such as {quote(str(path / runs[-1]), 200)}"
    if files:
        return f"a folder; expected a file in it, such as {quote(str(path / files[0]), 200)}"
    if "config.json" in names:
        return "a folder with a configuration but no weights"
    if "dataset.json" in names or any(name.lower().endswith((".png", ".jpg", ".jpeg")) for name in names):
        return "a folder of pictures (a data set?), not a checkpoint"
    return "an empty folder" if not names else "a folder without a checkpoint"


class TorchArchive:
    """torch's zip layout: NAME/data.pkl and NAME/data/KEY, all stored uncompressed."""

    def __init__(self, data: memoryview):
        self.data = data
        self.storages: dict[str, Storage] = {}
        with zipfile.ZipFile(_ReadOnly(data)) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        names = [name.split("/", 1)[-1] for name in self.members]
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise CheckpointError(
                "a TorchScript program, whose code is not read; expected its weights: "
                "torch.save(torch.jit.load(PATH).state_dict(), NEW) where the file can be trusted"
            )
        pickles = [name for name in self.members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"a zip archive without a pickled object{self.looks_like()}; {FORMATS}")
        self.pickle_name = pickles[0]
        self.prefix = self.pickle_name.removesuffix("data.pkl")
        order = self.prefix + "byteorder"
        if order in self.members and bytes(self.member(order)) != b"little":
            raise CheckpointError("written by a big-endian machine; only little-endian is supported")

    def looks_like(self) -> str:
        ends = {name.rsplit(".", 1)[-1].lower() for name in self.members if not name.endswith("/")}
        if ends == {"npy"}:
            return " (NumPy arrays, .npz)"
        if ends & {"png", "jpg", "jpeg", "webp"} or "dataset.json" in self.members:
            return " (pictures: a data set?)"
        if ends & {"pkl", "pt", "pth", "safetensors", "ckpt"}:
            return " (packed checkpoints: unpack it first)"
        return ""

    def member(self, name: str) -> memoryview:
        """The bytes of one member, checked against its checksum."""
        info = self.members.get(name)
        if info is None:
            raise CheckpointError("damaged archive: a tensor's data is missing")
        start = info.header_offset
        local = bytes(self.data[start : start + 30])
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or local[:4] != b"PK\x03\x04":
            raise CheckpointError("damaged archive: compressed or malformed member")
        start += 30 + sum(struct.unpack("<HH", local[26:30]))
        piece = self.data[start : start + info.file_size]
        if len(piece) != info.file_size or zlib.crc32(piece) != info.CRC:
            raise CheckpointError("damaged archive: a member does not match its checksum")
        return piece

    def storage(self, pid: Any) -> Storage:
        key, dtype, numel = read_storage_id(pid)
        storage = self.storages.get(key)
        if storage is None:
            raw = self.member(f"{self.prefix}data/{key}")
            storage = self.storages[key] = Storage(dtype, raw, len(raw) // dtype.itemsize)
        if storage.dtype != dtype or storage.numel != numel or len(storage.raw) != numel * dtype.itemsize:
            raise CheckpointError(f"a storage of {numel} elements has {len(storage.raw)} bytes")
        return storage


class OldStorages:
    """The storages of torch's old layout: named by the pickle, found behind it."""

    def __init__(self) -> None:
        self.named: dict[str, Storage] = {}

    def storage(self, pid: Any) -> Any:
        """The storage of a persistent id, or the class of a stored module: ('module', class, file name, source)."""
        if isinstance(pid, tuple) and len(pid) == 4 and isinstance(pid[0], str) and pid[0] == "module":
            return pid[1]
        key, dtype, numel = read_storage_id(pid)
        storage = self.named.setdefault(key, Storage(dtype, memoryview(b""), numel))
        if storage.dtype != dtype or storage.numel != numel:
            raise CheckpointError("damaged checkpoint: a storage with two sizes")
        return storage

    def fill(self, data: memoryview, keys: Any, position: int) -> None:
        """int64 numel and raw values of each key, in that order, up to the end of the file."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self.named):
            raise CheckpointError("damaged checkpoint: a tensor's data is missing")
        for key in keys:
            storage = self.named[key]
            end = position + 8 + storage.numel * storage.dtype.itemsize
            raw = data[position:end]
            if len(raw) != end - position or struct.unpack("<q", raw[:8])[0] != storage.numel:
                raise CheckpointError("the file is cut short")
            storage.raw, position = raw[8:], end


class _ReadOnly(io.RawIOBase):
    """A file object over a memoryview that never copies the whole."""

    def __init__(self, data: memoryview):
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._position + size
        piece = bytes(self._data[self._position : end])
        self._position += len(piece)
        return piece
