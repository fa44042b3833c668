"""The door to the compiled part: loads edm_fast._C, or keeps the reason it could not. Only here is a tensor an address.

A native function takes numbers by name (csrc/arguments.h), so everything a wrong pointer could break is verified first:
device, dtype, memory layout. CPU functions get the instruction set and torch's thread count, CUDA functions the device
and the stream. That is `call`. `bind`, for plans, takes addresses: its caller lays out all memory itself, as float32,
and `window` checks the images in it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch  # first: the compiled part looks for torch's thread pool when it needs one

from edm_fast.errors import UserError, one_line

DTYPES = {torch.float32: 0, torch.float64: 1}  # codes of csrc/common.h
CUDA_DTYPES = {**DTYPES, torch.float16: 2, torch.bfloat16: 3}


class Algorithm(NamedTuple):
    """How the CPU computes a convolution: a row of csrc/cpu/algorithms.h, which says what the fields mean. Native
    functions take it as its place in that list."""

    name: str
    rows: int  # of outputs in a tile
    columns: int
    paired: bool
    int16: bool
    packed: bool
    doubled: bool
    error: str  # the first of the precisions exact, fp32, bf16 that allows it
    place: int = -1  # in that list

    def __index__(self) -> int:
        return self.place


lib: Any = None
# the instruction sets this build has code for, whether this processor runs it or not
ISAS: tuple[str, ...] = ("portable",)
ALGORITHMS: dict[str, Algorithm] = {}  # by name
_failure = ""
_isa = 0
try:
    _C: Any = importlib.import_module("edm_fast._C")
    _isa, ISAS = _C.BEST_ISA, tuple(row["name"] for row in _C.ISAS)
    ALGORITHMS = {row["name"]: Algorithm(**row, place=place) for place, row in enumerate(_C.ALGORITHMS)}
    lib = _C
except ImportError as error:
    _why = f"the compiled part is not there ({one_line(error)})"
    _failure = f"{_why}; it needs a C++17 compiler and pybind11 at install time"
except Exception as error:  # whatever a broken or foreign file raises
    _why = f"the compiled part does not load ({type(error).__name__}: {one_line(error)})"
    _failure = f"{_why}; expected a new installation"


def cpu_reason() -> str | None:
    """None if CPU functions can be called, otherwise why not."""
    return _failure or None


def cuda_reason() -> str | None:
    """None if CUDA functions can be called on the tensors of a CUDA device, otherwise why not."""
    return _failure if lib is None else lib.CUDA_STATUS or None


def isa() -> str:
    """The instruction set CPU functions run on."""
    return ISAS[_isa]


def available(name: str) -> bool:
    """Whether CPU functions can run on the instruction set here."""
    return lib is not None and any(row["name"] == name and row["available"] for row in lib.ISAS)


def has_pairs() -> bool:
    """Whether the instruction set in use has registers enough for products in pairs of terms to pay."""
    return lib is not None and bool(lib.ISAS[_isa]["pairs"])


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run CPU functions on the code for one of ISAS inside the block (process-wide)."""
    global _isa
    if not available(name):
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
    if all([t.is_contiguous() for t in tensors]):
        return torch.contiguous_format
    if all([t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in tensors]):
        return torch.channels_last
    return None


def dense_layout(x: torch.Tensor) -> torch.memory_format:
    """The memory layout of x; contiguous where x has gaps."""
    return layout_of(x) or torch.contiguous_format


def window(image: torch.Tensor) -> tuple[int, int]:
    """(address, pitch) of a float32 CPU image (N, C, H, W) that lies channels last in a perhaps wider one: `pitch`
    elements from pixel to pixel, C of them its own. Tensors (N, C) are images of one pixel."""
    n, c, h, w = (*image.shape, 1, 1)[:4]
    strides = (*image.stride(), 1, 1)[:4]
    pitch = strides[3] if w > 1 else strides[2] if h > 1 else strides[0] if n > 1 else c
    dense = [(n, h * w * pitch), (c, 1), (h, w * pitch), (w, pitch)]
    if image.device.type != "cpu" or image.dtype != torch.float32:
        raise UserError(f"an image on {image.device} of {image.dtype}; expected float32 on the CPU")
    if pitch < c or any(size > 1 and stride != want for (size, want), stride in zip(dense, strides)):
        raise UserError(f"an image of shape {tuple(image.shape)} with strides {image.stride()}; expected channels last")
    return image.data_ptr(), pitch


def bind(name: str, **arguments: Any) -> Callable[[int], None]:
    """A native CPU function on float32 memory with its arguments set, addresses as `window` gives them, on the present
    instruction set; called with the number of threads. Whoever calls it keeps the memory alive."""
    return lib.bind(getattr(lib, name), dtype=DTYPES[torch.float32], isa=_isa, **arguments)


def call(name: str, *, layout: torch.memory_format = torch.contiguous_format, **arguments: Any) -> None:
    """Run a native function on tensors of one device and dtype; 4-D tensors lie in `layout`, others are contiguous.

    Tensors, also in lists, are passed as addresses, None as the null address. Outputs are allocated by the caller, who
    passes every tensor by name and so keeps it alive until the work is done, or is queued on the current stream.
    """
    device, dtype, address = _verified(name, arguments, layout)
    function = getattr(lib, name)
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device).cuda_stream
        function(address, dtype=dtype, device=device.index, stream=stream, **arguments)
    else:
        function(address, dtype=dtype, isa=_isa, threads=torch.get_num_threads(), **arguments)


def cuda_workspace(name: str, *, layout: torch.memory_format = torch.contiguous_format, **arguments: Any) -> int:
    """The bytes of workspace that the CUDA function `name` needs for arguments as of `call`."""
    name = f"{name}_workspace_cuda"
    _, dtype, address = _verified(name, arguments, layout)
    return getattr(lib, name)(address, dtype=dtype, **arguments)


def _verified(
    name: str, arguments: dict[str, Any], layout: torch.memory_format
) -> tuple[torch.device, int, Callable[[torch.Tensor], int]]:
    """Device and code of the dtype of the first tensor, and what gives the address of one like it, verified."""
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
            break
    if not name.endswith(device.type):
        raise UserError(f"{name} got a tensor on {device}")
    codes = CUDA_DTYPES if device.type == "cuda" else DTYPES
    if dtype not in codes:
        names = [str(known).removeprefix("torch.") for known in codes]
        raise UserError(f"{name} got a tensor of {dtype}; expected {', '.join(names[:-1])} or {names[-1]}")

    def address(tensor: torch.Tensor) -> int:
        if tensor.dtype != dtype or tensor.device != device:
            raise UserError(f"{name} got tensors on {device} and {tensor.device}, of {dtype} and {tensor.dtype}")
        if not (tensor.is_contiguous(memory_format=layout) if tensor.ndim == 4 else tensor.is_contiguous()):
            raise UserError(f"{name} got a tensor with strides {tensor.stride()}; expected {layout}")
        at = tensor.data_ptr()
        if not at and tensor.numel():
            raise UserError(f"{name} got a tensor without memory")
        return at

    return device, codes[dtype], address
