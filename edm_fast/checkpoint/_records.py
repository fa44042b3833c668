"""What a checkpoint's pickle turns into: inert records, the error all readers raise, and the limits they keep."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError

from edm_fast.errors import UserError

MAX_INSTRUCTIONS = 1_000_000  # a training state of the largest published network has about 1e5
MAX_DEPTH = 32  # nesting of plain data and of modules
MAX_DIMS = 8


class CheckpointError(UserError):
    """A checkpoint that cannot be used: missing, damaged, of another kind, or not to be trusted."""


def quote(text: object, limit: int = 60) -> str:
    """Text from a file, made safe for one line of an error message."""
    if not isinstance(text, str):
        return f"<{type(text).__name__}>"
    return ascii(text if len(text) <= limit else text[:limit] + "...")


@contextlib.contextmanager
def damaged(name: str) -> Iterator[None]:
    """Turn whatever hostile or broken bytes provoke below into one CheckpointError that names the file."""
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(name):
            raise
        raise CheckpointError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file or folder") from None
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror or type(error).__name__})") from None
    except (MemoryError, RecursionError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
        raise CheckpointError(f"{name}: damaged checkpoint ({type(error).__name__})") from None
    except (ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{name}: damaged checkpoint ({reason})") from None


@dataclass
class Budget:
    """What one file may cost: pickle instructions in total, and bytes copied out of it."""

    bytes_left: int
    instructions_left: int = MAX_INSTRUCTIONS

    def spend_bytes(self, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise CheckpointError("holds more tensor data than its size allows (tensors that share or overlap bytes)")

    def spend_instructions(self, count: int) -> None:
        self.instructions_left -= count
        if self.instructions_left < 0:
            raise CheckpointError(f"has more than {MAX_INSTRUCTIONS} pickle instructions")


@dataclass(eq=False)
class Global:
    """An allowed (module, name) pair. Never looked up; readers know what to do with each."""

    module: str
    name: str


@dataclass(eq=False)
class Persistent:
    """A stored object of the reference: class name and attributes, as data."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)
    source: str = ""  # the embedded source text: never executed, compiled or parsed


@dataclass(eq=False)
class ModuleDictRecord:
    """A stored torch ModuleDict: attributes only."""

    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class NumpyDtype:
    """A plain numeric numpy dtype such as `f8`."""

    code: str
    byte_order: str = "<"


@dataclass(eq=False)
class Storage:
    """Raw bytes of a tensor's storage, little-endian."""

    dtype: torch.dtype
    raw: memoryview
    numel: int


@dataclass(eq=False)
class TensorRecord:
    """A view of a storage, already checked against the storage's size."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        count = 1
        for n in self.size:
            count *= n
        return count


@dataclass(eq=False)
class NumpyArray:
    """A numpy array as a tensor; None if it is not of plain numbers, and until its contents are read."""

    tensor: TensorRecord | None = None


def is_count(value: object) -> bool:
    """True for a non-negative int64 that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def make_tensor_record(storage: object, offset: object, size: object, stride: object) -> TensorRecord:
    """Check offset + sum_i (size_i - 1) stride_i < numel, and that no element is counted twice (stride 0)."""
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise CheckpointError("a tensor with malformed sizes")
    if len(size) > MAX_DIMS or not is_count(offset) or not all(map(is_count, size)) or not all(map(is_count, stride)):
        raise CheckpointError("a tensor with malformed sizes")
    record = TensorRecord(storage, offset, size, stride)  # type: ignore[arg-type]
    last = record.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    empty = 0 in size
    if (empty and record.offset > storage.numel) or (not empty and last >= storage.numel):
        raise CheckpointError(f"a tensor reaches beyond its storage of {storage.numel} elements")
    if not empty and record.numel > storage.numel:
        raise CheckpointError(f"a tensor of {record.numel} elements on a storage of {storage.numel}")
    return record


def to_tensor(record: TensorRecord, budget: Budget) -> torch.Tensor:
    """Copy a record into a fresh contiguous tensor."""
    storage = record.storage
    budget.spend_bytes(max(record.numel, 1) * storage.dtype.itemsize)
    if record.numel == 0:
        return torch.empty(record.size, dtype=storage.dtype)
    # only the bytes the view touches are copied; strides never reach past them
    item = storage.dtype.itemsize
    last = record.offset + sum((n - 1) * s for n, s in zip(record.size, record.stride, strict=True))
    raw = bytearray(storage.raw[record.offset * item : (last + 1) * item])
    flat = torch.frombuffer(raw, dtype=storage.dtype)
    view = flat.as_strided(record.size, record.stride)
    return view if view.is_contiguous() else view.contiguous()


def raw_values(tensor: torch.Tensor) -> bytes:
    """Little-endian, row-major: float16 of a half-precision tensor, else float32."""
    kind = "<f2" if tensor.dtype == torch.float16 else "<f4"
    values = tensor.detach().cpu() if kind == "<f2" else tensor.detach().to("cpu", torch.float32)
    return values.numpy().astype(kind, copy=False).tobytes()
