"""The native kernels on small sizes by a program without torch, which compute-sanitizer can follow in seconds.

    compute-sanitizer --tool=memcheck python benchmarks/_gpu_native.py

Memory comes from the driver, an allocation of its own for each array, so that an access beside it is one outside of
all memory. The contents are halves of small whole numbers; results are only compared between two runs, bit by bit.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.machinery
import importlib.util
import itertools
import random
import struct
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "edm_fast"
TYPES = {"f": (0, 4), "d": (1, 8), "e": (2, 2)}  # of the struct module: the code of csrc/common.h, bytes


def compiled_part() -> Any:
    """edm_fast._C alone: the package would import torch."""
    (path, *_) = [path for end in importlib.machinery.EXTENSION_SUFFIXES if (path := PACKAGE / f"_C{end}").exists()]
    spec = importlib.util.spec_from_file_location("edm_fast._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Host:
    """Arrays in main memory."""

    name, types = "cpu", "fd"

    def __init__(self) -> None:
        self.arrays: list[Any] = []
        self.where = {"isa": 0, "threads": 1}

    def array(self, data: bytes) -> int:
        self.arrays.append(ctypes.create_string_buffer(data, len(data)))
        return ctypes.addressof(self.arrays[-1])

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def free(self) -> None:
        self.arrays.clear()


class Gpu:
    """Arrays in the memory of device 0."""

    name, types = "cuda", "fde"

    def __init__(self) -> None:
        self.driver, self.addresses = ctypes.CDLL("libcuda.so.1"), []
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # that of the CUDA runtime
        self._call("cuCtxSetCurrent", context)
        self.where = {"device": 0, "stream": 0}

    def _call(self, name: str, *args: Any) -> None:
        if status := getattr(self.driver, name)(*args):
            raise SystemExit(f"{name} returned {status}")

    def array(self, data: bytes) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(len(data), 1)))
        self._call("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
        self.addresses.append(address)
        return address.value

    def read(self, address: int, size: int) -> bytes:
        self._call("cuCtxSynchronize")
        data = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw

    def free(self) -> None:
        for address in self.addresses:
            self._call("cuMemFree_v2", address)
        self.addresses = []


def calls(memory: Any, lib: Any, kind: str) -> Any:
    """(function, arguments, the size of y in bytes) of small cases, odd ones among them."""
    code, size = TYPES[kind]
    draw = random.Random(0)

    def array(count: int, letter: str = kind) -> int:
        return memory.array(struct.pack(f"={count}{letter}", *(draw.randrange(-9, 9) / 2 for _ in range(count))))

    def filled(count: int, letter: str = kind) -> int:
        return memory.array(b"\xff" * (count * TYPES[letter][1]))

    for (n, c, groups, space), last, silu in itertools.product(
        [(2, 32, 8, 64), (1, 6, 3, 35), (3, 20, 5, 1), (1, 256, 32, 1024)], [False, True], [False, True]
    ):
        same = {"n": n, "c": c, "space": space, "groups": groups, "eps": 1e-5, "silu": silu, "channels_last": last}
        same |= {"dtype": code, "x_pitch": c, "x": array(n * c * space), "y": filled(n * c * space)}
        same |= {"weight": array(c), "bias": array(c), "stats": filled(3 * n * groups, "d" if kind == "d" else "f")}
        if silu:
            same |= {"scale": array(n * c), "shift": array(c), "scale_rows": n, "shift_rows": 1}
        if memory.name == "cuda":
            plain = {name: value for name, value in same.items() if name != "stats"}
            bytes_wanted = lib.group_norm_silu_fwd_workspace_cuda(**plain)
            same |= {"workspace": memory.array(b"\xff" * bytes_wanted) if bytes_wanted else None}
        yield "group_norm_silu_fwd", same, n * c * space * size
    for (n, c, h, w, taps), up, last in itertools.product(
        [(2, 8, 6, 8, 2), (1, 5, 7, 5, 4)], [False, True], [False, True]
    ):
        padding = taps // 2 - 1
        out_h, out_w = (2 * h, 2 * w) if up else ((h + 2 * padding - taps) // 2 + 1, (w + 2 * padding - taps) // 2 + 1)
        same = {"n": n, "c": c, "h": h, "w": w, "out_h": out_h, "out_w": out_w, "taps": taps, "factor": 2}
        same |= {"padding": padding, "gain": 4.0 if up else 1.0, "up": up, "channels_last": last, "x_pitch": c}
        count = n * c * out_h * out_w
        same |= {"dtype": code, "x": array(n * c * h * w), "f": array(taps * taps), "y": filled(count)}
        yield "upfirdn_fwd", same, count * size
    for count, terms, noise in [(96, 0, False), (1023, 2, True), (4097, 3, False)] if kind != "e" else []:
        same = {name: 0.5 for name in ("p", "q", "t", "a", "h", "w", "c")}
        same |= {"dtype": code, "size": count, "weights": [0.25] * terms, "terms": [array(count) for _ in range(terms)]}
        same |= {name: array(count) for name in ("base", "x", "D", *(["noise"] if noise else []))}
        yield "solver_update_fwd", {**same, "y": filled(count), "d": filled(count)}, count * size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args().device
    lib, count = compiled_part(), 0
    if device == "cuda" and lib.CUDA_STATUS:
        raise SystemExit(lib.CUDA_STATUS)
    memory: Any = Gpu() if device == "cuda" else Host()
    for kind in memory.types:
        for name, arguments, size in calls(memory, lib, kind):
            found = set()
            for _ in range(2):
                getattr(lib, f"{name}_{memory.name}")(**memory.where, **arguments)
                found.add(memory.read(arguments["y"], size))
            if len(found) > 1 or b"\xff" * min(size, 8) in found.pop()[-8:]:
                raise SystemExit(f"{name}: other bits in a second run, or nothing written")
            memory.free()
            count += 1
    print(f"{count} calls")


if __name__ == "__main__":
    sys.exit(main())
