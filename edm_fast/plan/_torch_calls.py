"""torch's own calls as the ops that have kernels, for networks whose layers are torch's.

Convolutions of stride 1, group norms with a SiLU after them, resampling by 2 and linear layers; what is not listed here
stays a call of torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edm_fast import backend
from edm_fast.errors import UserError
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.plan._graph import AnyNode, Graph, LinearArgs, Node, TorchArgs, Value, linear
from edm_fast.plan._rewrite import rewrite, skip_dropout

ALL = slice(None)


def as_ops(graph: Graph) -> Graph:
    """The graph with ops in place of torch's calls, and terms that are added to a convolution as part of it."""
    graph = dataclasses.replace(graph, nodes=[_as_op(node) for node in graph.nodes])
    columns: dict[Value, Any] = {
        node.output: node.args.args[0] for node in graph.nodes if isinstance(node, Node) and _makes_column(node)
    }
    rules = (skip_dropout, skip_one, norm_silu, functools.partial(add_term, columns=columns), scale_result)
    graph = rewrite(graph, *rules)
    readers = graph.readers()  # of what has become part of a convolution, nobody reads the column
    return dataclasses.replace(graph, nodes=[node for node in graph.nodes if any(v in readers for v in node.outputs)])


def _is_image(value: Any) -> bool:
    return isinstance(value, Value) and len(value.shape) == 4 and value.dtype == torch.float32


def _name(node: AnyNode) -> str:
    """Of a call of torch; nothing for ops."""
    return getattr(node.function, "__name__", "") if isinstance(node, Node) and isinstance(node.args, TorchArgs) else ""


def _as_op(node: AnyNode) -> Node:
    assert isinstance(node, Node)
    make = CALLS.get(_name(node))
    found = make(*node.args.args, **node.args.kwargs) if make is not None else None
    if found is None:
        if _name(node) == "as_strided":
            raise UserError("as_strided reads numbers in the order of the memory, which is another one here")
        # nor are images in the order in which a view would find them
        sizes = _name(node) == "view" and not any(isinstance(size, torch.dtype) for size in node.args.args)
        return dataclasses.replace(node, function=torch.Tensor.reshape) if sizes else node
    return Node(*found, node.outputs)


def _square(value: Any) -> int | None:
    """The number in 1 or (1, 1)."""
    numbers = {*value} if isinstance(value, tuple) else {value}
    return numbers.pop() if len(numbers) == 1 and all(isinstance(n, int) for n in numbers) else None


Found = tuple[Callable[..., Any], Any] | None  # an op and its arguments


def _conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Found:
    kernel = _square(tuple(weight.shape[2:])) if isinstance(weight, torch.Tensor) else None
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else kernel // 2 if kernel and kernel % 2 else None
    padding = _square(padding)
    plain = _square(stride) == 1 and _square(dilation) == 1 and groups == 1
    if not plain or kernel is None or padding is None or not _is_image(input) or isinstance(bias, Value):
        return None
    return backend.ops()["conv2d"], Conv2dArgs(input, weight, bias, padding=padding)


def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Found:
    if not _is_image(input) or not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor):
        return None
    return backend.ops()["group_norm_silu"], GroupNormSiluArgs(input, weight, bias, num_groups, eps, silu=False)


def _linear(input: Any, weight: Any, bias: Any = None) -> Found:
    vectors = isinstance(input, Value) and len(input.shape) == 2 and isinstance(weight, torch.Tensor)
    return (linear, LinearArgs(input, weight, bias)) if vectors and not isinstance(bias, Value) else None


def _interpolate(
    input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any
) -> Found:
    twice = size is None and mode == "nearest" and scale_factor in (2, (2, 2), [2, 2]) and _is_image(input)
    return (backend.ops()["upfirdn"], UpfirdnArgs(input, torch.full((2, 2), 0.25), up=2)) if twice else None


def _avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Found:
    halves = _square(kernel_size) == 2 and stride in (None, 2, (2, 2)) and _square(padding) == 0
    even = _is_image(input) and not input.shape[2] % 2 and not input.shape[3] % 2  # no part of a window is outside
    halves = halves and divisor_override is None
    return (backend.ops()["upfirdn"], UpfirdnArgs(input, torch.full((2, 2), 0.25), down=2)) if halves and even else None


CALLS: dict[str, Callable[..., Found]] = {
    "conv2d": _conv2d,
    "group_norm": _group_norm,
    "linear": _linear,
    "interpolate": _interpolate,
    "avg_pool2d": _avg_pool2d,
}


def _makes_column(node: Node) -> bool:
    """vector[:, :, None, None], as it is added to an image."""
    if _name(node) != "__getitem__" or len(node.args.args[0].shape) != 2:
        return False
    index = node.args.args[1]
    return (
        isinstance(index, tuple)
        and len(index) == 4
        and all(a is b or a == b for a, b in zip(index, (ALL, ALL, None, None)))
    )


def _with_number(node: Node, *names: str) -> float | None:
    """The number by which a value is multiplied or divided."""
    if _name(node) not in names or len(node.args.args) != 2 or node.args.kwargs:
        return None
    number = node.args.args[1]
    return number if isinstance(number, (int, float)) else None


def skip_one(first: Node, second: Node) -> Sequence[AnyNode] | None:
    if len(first.outputs) > 1 or _with_number(second, "div", "mul", "__truediv__", "__mul__", "true_divide") != 1:
        return None
    return [Node(first.function, first.args, second.outputs)]


def norm_silu(first: Node, second: Node) -> Sequence[AnyNode] | None:
    if not isinstance(first.args, GroupNormSiluArgs) or first.args.silu or _name(second) != "silu":
        return None
    return [Node(first.function, first.args._replace(silu=True), second.outputs)]


def add_term(first: Node, second: Node, columns: dict[Value, Any]) -> Sequence[AnyNode] | None:
    """A vector or an image that is added to a convolution."""
    if not isinstance(first.args, Conv2dArgs) or _name(second) not in (
        "add",
        "__add__",
        "__radd__",
        "add_",
        "__iadd__",
    ):
        return None
    terms = second.args.args
    if len(terms) != 2 or second.args.kwargs or not all(isinstance(term, Value) for term in terms):
        return None
    other = terms[0] if terms[1] is first.output else terms[1]
    if other is first.output or first.args.residual is not None or not _is_image(other):
        return None
    if (
        (vector := columns.get(other)) is not None
        and first.args.emb is None
        and vector.shape[0] == first.args.x.shape[0]
    ):
        conv = first.args._replace(emb=vector)
    elif other.shape == first.output.shape:
        conv = first.args._replace(residual=other)
    else:
        return None
    return [Node(first.function, conv, second.outputs)]


def scale_result(first: Node, second: Node) -> Sequence[AnyNode] | None:
    if not isinstance(first.args, Conv2dArgs) or first.args.scale != 1:
        return None
    if (factor := _with_number(second, "mul", "__mul__")) is None:
        divisor = _with_number(second, "div", "__truediv__", "true_divide")
        factor = 1 / divisor if divisor else None
    return None if factor is None else [Node(first.function, first.args._replace(scale=float(factor)), second.outputs)]
