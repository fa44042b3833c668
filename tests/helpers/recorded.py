"""Records calls of native CPU functions and what they wrote, for tests/instruction_sets/replay.cpp to repeat."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edm_fast import native

_NORM = "weight bias scale shift"
_SIZES = "n c space groups scale_rows shift_rows x_pitch eps silu channels_last"
_ATTENTION = (
    "qkv a stats da dqkv n heads channels pixels qkv_image qkv_head qkv_which qkv_channel qkv_pixel "
    "a_image a_head a_channel a_pixel"
)
# the arguments of each function in their order, lists written out; name*: all of a list, numbered
FIELDS = {
    "attention_fwd_cpu": _ATTENTION,
    "attention_bwd_cpu": _ATTENTION,
    "conv2d_pack_cpu": "packed weight out in kernel transposed algorithm",
    "conv2d_fwd_cpu": "y x weight bias residual workspace affine balance n h w in out kernel padding bias_rows y_pitch "
    "x_pitch residual_pitch scale silu transposed algorithm",
    "conv2d_bwd_cpu": "dweight x dy workspace n h w in out padding",
    "group_norm_silu_fwd_cpu": f"x y stats {_NORM} affine {_SIZES}",
    "group_norm_silu_bwd_cpu": f"x stats {_NORM} dy dx dparams {_SIZES}",
    "solver_update_fwd_cpu": "y d base x D noise term* weight* p q t a h w c size",
    "upfirdn_fwd_cpu": "y x f n c h w out_h out_w taps factor padding gain up channels_last x_pitch",
}
POINTERS = set(
    "qkv a stats da dqkv packed weight y x bias residual workspace affine balance dweight dy scale shift dx dparams d "
    "base D noise f".split()
)


def contents(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor without gaps, in the order in which they lie in memory."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""


def named(function: str, args: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """(name, argument) of a call, lists written out."""
    names, rest = FIELDS[function].split(), list(args)
    while rest:
        value = rest.pop(0)
        if names[0].endswith("*"):
            yield from ((f"{names[0][:-1]}{i}", item) for i, item in enumerate(value))
        elif isinstance(value, (list, tuple)):
            rest[:0] = value
            continue
        else:
            yield names[0], value
        names.pop(0)
    assert not names, f"{function} got no {names}"


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

    def _call(self, function: str, *args: Any, **layout: Any) -> None:
        fields = [("dtype", native.DTYPES[args[0].dtype]), *named(function, args)]
        words = []
        for name, value in fields:
            null = value is None and (name in POINTERS or name.rstrip("0123456789") == "term")
            if null or isinstance(value, torch.Tensor):
                words.append(f"{name} p {-1 if null else self._buffer(name, value)}")
            else:
                words.append(f"{name} n {float(value).hex()}")
        self.original(function, *args, **layout)
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
