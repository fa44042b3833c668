"""The door to the compiled part: loads edm_fast._C or keeps the reason it could not. Tensors become addresses here only.

A native function takes plain numbers, so everything a wrong pointer could break is verified first: device, dtype,
memory layout. CPU functions get the instruction set and torch's thread count, CUDA functions the device and the stream.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch  # first: the compiled part looks for torch's thread pool when it needs one

from edm_fast.errors import UserError

ISAS = ("portable", "avx2", "avx512")
DTYPES = {torch.float32: 0, torch.float64: 1}  # codes of csrc/common.h

lib: Any = None
_failure = ""
try:
    from edm_fast import _C as lib  # type: ignore[no-redef,attr-defined]
except ImportError as error:
    _failure = f"the compiled part is not there ({error}); it needs a C++17 compiler and pybind11 at install time"

_isa: int = lib.BEST_ISA if lib is not None else 0
MAX_TERMS: int = lib.MAX_TERMS if lib is not None else 0


def cpu_reason() -> str | None:
    """None if CPU functions can be called, otherwise why not."""
    return _failure or None


@functools.cache
def cuda_reason() -> str | None:
    """None if CUDA functions can be called, otherwise why not."""
    if lib is None:
        return _failure
    if lib.CUDA_STATUS:
        return lib.CUDA_STATUS
    return None if torch.cuda.is_available() else "no CUDA device"


def isa() -> str:
    """The instruction set CPU functions run on."""
    return ISAS[_isa]


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run CPU functions on "portable", "avx2" or "avx512" code inside the block (process-wide)."""
    global _isa
    if name not in ISAS or lib is None or ISAS.index(name) > lib.BEST_ISA:
        best = ISAS[lib.BEST_ISA] if lib is not None else "none"
        raise UserError(f"instruction set {name!r} is not available; the best here is {best}")
    saved, _isa = _isa, ISAS.index(name)
    try:
        yield
    finally:
        _isa = saved


def thread_pool() -> str | None:
    """The OpenMP library whose threads CPU functions share, or "own threads"."""
    return None if lib is None else lib.thread_pool()


def layout_of(*tensors: torch.Tensor) -> torch.memory_format | None:
    """The memory layout that all the tensors have in common and that leaves no gaps, or None."""
    for layout in (torch.contiguous_format, torch.channels_last):
        if all(t.is_contiguous(memory_format=layout) for t in tensors if t.ndim == 4 or layout != torch.channels_last):
            if layout == torch.contiguous_format or all(t.ndim == 4 for t in tensors):
                return layout
    return None


def call(name: str, *args: Any, layout: torch.memory_format = torch.contiguous_format) -> None:
    """Run a native function on tensors of one device and dtype; 4-D tensors lie in `layout`, others are contiguous.

    Tensors (also in lists) are passed as addresses, None as the null address; the dtype's code goes first. Outputs are
    allocated by the caller. `args` keeps every tensor alive until the work is done, or is queued on its stream.
    """
    first = next(arg for arg in args if isinstance(arg, torch.Tensor))
    device, dtype = first.device, first.dtype
    if not name.endswith(f"_{device.type}"):
        raise UserError(f"{name} got a tensor on {device}")
    if dtype not in DTYPES:
        raise UserError(f"{name} got a tensor of {dtype}; expected float32 or float64")

    def address(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.device != device or value.dtype != dtype:
                raise UserError(f"{name} got tensors on {device} and {value.device}, of {dtype} and {value.dtype}")
            expected = layout if value.ndim == 4 else torch.contiguous_format
            if not value.is_contiguous(memory_format=expected):
                raise UserError(f"{name} got a tensor with strides {value.stride()}; expected {expected}")
            return value.data_ptr()
        if isinstance(value, (list, tuple)):
            return [address(item) for item in value]
        return 0 if value is None else value

    if device.type == "cuda":
        where = (device.index, torch.cuda.current_stream(device).cuda_stream)
    else:
        where = (_isa, torch.get_num_threads())
    getattr(lib, name)(DTYPES[dtype], *map(address, args), *where)
