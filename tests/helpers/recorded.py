"""Records calls of native CPU functions and what they wrote, for tests/instruction_sets/replay.cpp to repeat."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edm_fast import native


def contents(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor without gaps, in the order in which they lie in memory."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""


class Record:
    """The files NAME.txt and NAME.bin, written as calls are made within `case`."""

    def __init__(self, path: Path) -> None:
        self.text, self.raw = path.with_suffix(".txt").open("w"), path.with_suffix(".bin").open("wb")

    def close(self) -> None:
        self.text.close()
        self.raw.close()

    def _kept(self, data: bytes) -> int:
        offset = self.raw.tell()
        self.raw.write(data)
        return offset

    def _buffer(self, name: str, tensor: torch.Tensor) -> int:
        for index, (known, _, before) in enumerate(self.buffers):
            if tensor.numel() and known.data_ptr() == tensor.data_ptr():
                assert len(before) == tensor.numel() * tensor.element_size(), "two tensors in one place"
                return index
        before = contents(tensor)
        where = "nan" if name == "workspace" else self._kept(before)
        print("buffer", len(before), where, file=self.text)
        self.buffers.append((tensor, name, before))  # kept: no other tensor comes to lie there
        return len(self.buffers) - 1

    def _call(self, function: str, *, layout: Any = torch.contiguous_format, **arguments: Any) -> None:
        words = []
        for name, value in arguments.items():
            for item in value if type(value) in (list, tuple) else [value]:  # an Algorithm is one number
                if isinstance(item, torch.Tensor):
                    words.append(f"{name} p {self._buffer(name, item)}")
                elif item is not None:
                    words.append(f"{name} n {float(item).hex()}")
        dtype = next(value.dtype for value in arguments.values() if isinstance(value, torch.Tensor))
        words.append(f"dtype n {float(native.DTYPES[dtype]).hex()}")
        self.original(function, layout=layout, **arguments)
        print("call", function, len(words), *words, file=self.text)

    @contextlib.contextmanager
    def case(self, name: str, tolerance: float = 0.0, ignored: tuple[str, ...] = ("workspace",)) -> Iterator[None]:
        """Records the calls within, and expects what they changed within `tolerance`, but for the buffers `ignored`."""
        print("case", name.replace(" ", "_"), file=self.text)
        self.buffers: list[tuple[torch.Tensor, str, bytes]] = []
        self.original, native.call = native.call, self._call
        try:
            yield
        finally:
            native.call = self.original
        for index, (tensor, role, before) in enumerate(self.buffers):
            after = contents(tensor)
            if after != before and role not in ignored:
                where = f"{len(after)} {tensor.element_size()} {self._kept(after)}"
                print("expect", index, where, float(tolerance).hex(), file=self.text)
