"""The shape and type of a call's result, for the calls that networks are made of.

torch knows them too, by running the call on meta tensors, but most of its rules are in Python: the first of them
imports its compiler, which takes longer than making a plan does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

UNARY = {"cos", "sin", "exp", "log", "sqrt", "rsqrt", "neg", "silu", "sigmoid", "tanh", "relu", "abs", "square"}
BINARY = {"add", "sub", "mul", "div", "pow", "true_divide"}
BINARY |= {f"__{prefix}{name}__" for name in ("add", "sub", "mul", "truediv", "pow") for prefix in ("", "r")}


def result_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """A meta tensor like function(*args, **kwargs) of meta tensors and numbers, or None if there is no rule for it."""
    name = getattr(function, "__name__", "")
    if name == "cat" and not kwargs and len(args) == 2 and isinstance(args[1], int):
        return _joined(args[0], args[1])
    if any(value is not None and value is not False for value in kwargs.values()):
        return None
    if not all(isinstance(value, (int, float, torch.Tensor)) for value in args):
        return None
    if name == "matmul" and len(args) == 2:
        return _product(*args)
    if len(args) != {**dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2)}.get(name):
        return None
    dtype = torch.result_type(args[0], args[-1])
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    return _empty(_broadcast(*(t.shape for t in tensors)), dtype)


def _empty(shape: Sequence[int] | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Of integers and truth values torch knows more, and it complains itself of what cannot be."""
    return torch.empty(shape, dtype=dtype, device="meta") if shape is not None and dtype.is_floating_point else None


def _broadcast(first: Sequence[int], second: Sequence[int] = ()) -> list[int] | None:
    ndim = max(len(first), len(second))
    a, b = ([1] * (ndim - len(shape)) + list(shape) for shape in (first, second))
    return [n if m == 1 else m for m, n in zip(a, b)] if all(m == n or 1 in (m, n) for m, n in zip(a, b)) else None


def _joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor | None:
    shapes = [list(part.shape) for part in parts]
    size = sum(shape.pop(dim) if -len(shape) <= dim < len(shape) else 0 for shape in shapes)
    if any(shape != shapes[0] for shape in shapes) or len({part.dtype for part in parts}) > 1:
        return None
    shapes[0].insert(dim % (len(shapes[0]) + 1), size)
    return _empty(shapes[0], parts[0].dtype)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype:
        return None
    return _empty((a.shape[0], b.shape[1]), a.dtype)
