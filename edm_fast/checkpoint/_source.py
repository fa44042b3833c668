"""The bytes of a checkpoint file: memory-mapped, recognised by content, zip members found without unpacking."""

from __future__ import annotations

import io
import mmap
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from edm_fast.checkpoint._globals import read_storage_id
from edm_fast.checkpoint._records import CheckpointError, Storage

FORMATS = "expected a published .pkl, a training-state .pt, a .safetensors file or a folder holding one"


def map_file(path: Path) -> memoryview:
    """The whole file, read-only. The mapping lives as long as the view or anything cut from it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a named pipe would block
        raise CheckpointError(f"not a regular file; {FORMATS}")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError(f"the file is empty; {FORMATS}")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def recognise(data: memoryview) -> str:
    """`pickle`, `zip` or `safetensors`, from the first bytes."""
    head = bytes(data[:512])
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[4:9] == b"\0\0\0\0{":  # a header of less than 4 GiB, and its first character
        return "safetensors"
    if head[0] == 0x80 or head[:1] in b"(c}":  # protocol 2 and later; protocols 0 and 1
        return "pickle"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError("a web page, not a checkpoint; was the download link right?")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError("a Git LFS pointer, not the checkpoint itself; run `git lfs pull`")
    raise CheckpointError(f"not a checkpoint; {FORMATS}")


class TorchArchive:
    """torch's zip layout: NAME/data.pkl and NAME/data/KEY, all stored uncompressed."""

    def __init__(self, data: memoryview):
        self.data = data
        self.storages: dict[str, Storage] = {}
        with zipfile.ZipFile(_ReadOnly(data)) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError("a zip archive without a pickled object; expected a training-state .pt")
        self.pickle_name = pickles[0]
        self.prefix = self.pickle_name.removesuffix("data.pkl")
        order = self.prefix + "byteorder"
        if order in self.members and bytes(self.member(order)) != b"little":
            raise CheckpointError("written by a big-endian machine; only little-endian is supported")

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
