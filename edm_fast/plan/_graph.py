"""What a network computes at one set of input shapes: calls in order, with the Values they read and leave."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast import backend


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the computation: an input, or an output of a node."""

    shape: tuple[int, ...]
    name: str = ""
    dtype: torch.dtype = torch.float32


@dataclasses.dataclass(eq=False)
class Node:
    """function(args): an op, a function of this module, or a function of torch, whose arguments are a TorchArgs.

    The record `args` tells the kind of a node. In it stand Values for computed tensors, and the network's own tensors.
    """

    function: Callable[..., Any]
    args: Any
    outputs: Sequence[Value]

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def inputs(self) -> list[Value]:
        found: list[Value] = []
        map_leaves(lambda leaf: found.append(leaf) if isinstance(leaf, Value) else None, self.args)
        return found

    def run(self, args: Any) -> Any:
        """The call, of tensors in place of Values."""
        return self.function(*args.args, **args.kwargs) if isinstance(args, TorchArgs) else self.function(args)


@dataclasses.dataclass(eq=False)
class Fused:
    """Two nodes that run as one: `second` alone reads the output of `first`, which need not come to memory."""

    rule: str  # what `first` is: "norm" or "upsampling"
    first: Node
    second: Node

    @property
    def args(self) -> tuple[Any, Any]:
        """The records of both, the second with the image of the first in place of its result."""
        return self.first.args, self.second.args._replace(x=self.first.args.x)

    @property
    def outputs(self) -> Sequence[Value]:
        return self.second.outputs

    @property
    def output(self) -> Value:
        return self.second.output

    def inputs(self) -> list[Value]:
        return [*self.first.inputs(), *(value for value in self.second.inputs() if value is not self.first.output)]


AnyNode = Node | Fused


@dataclasses.dataclass
class Graph:
    inputs: dict[str, Value]
    nodes: Sequence[AnyNode]
    output: Value

    def readers(self) -> dict[Value, list[Any]]:
        """Who reads each value, as often as they do: nodes, and the caller, who reads the output."""
        readers: dict[Value, list[Any]] = {self.output: ["caller"]}
        for node in self.nodes:
            for value in node.inputs():
                readers.setdefault(value, []).append(node)
        return readers

    def producers(self) -> dict[Any, AnyNode]:
        return {value: node for node in self.nodes for value in node.outputs}

    def replaced(self, new: Mapping[AnyNode, Sequence[AnyNode]]) -> Graph:
        """The graph with other nodes in the places of some, without those that nobody reads any more."""
        graph = dataclasses.replace(self, nodes=[n for node in self.nodes for n in new.get(node, (node,))])
        read = graph.readers() if new else {}
        nodes = [node for node in graph.nodes if not new or any(value in read for value in node.outputs)]
        return dataclasses.replace(graph, nodes=nodes)

    def op_calls(self) -> Counter[str]:
        """How often each op is called in one evaluation."""
        functions = (node.function for node in self.nodes if isinstance(node, Node))
        return Counter(function.name for function in functions if isinstance(function, backend.Op))


class TorchArgs(NamedTuple):
    """The arguments of a function of torch."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class LinearArgs(NamedTuple):
    """A linear layer of x (N, C), weight (O, C) and bias (O,)."""

    x: Any
    weight: torch.Tensor
    bias: torch.Tensor | None = None


def linear(args: LinearArgs) -> torch.Tensor:
    return F.linear(*args)


class SeparateQKVArgs(NamedTuple):
    """Attention whose channels are in the order which of q, k and v, head, channel of the head."""

    qkv: Any
    num_heads: int


def separate_attention(args: SeparateQKVArgs) -> torch.Tensor:
    """softmax(QK^T)V by torch's fused kernels."""
    n, channels, h, w = args.qkv.shape
    pixels = args.qkv.permute(0, 2, 3, 1).reshape(n, h * w, 3, args.num_heads, channels // (3 * args.num_heads))
    return attention_of(pixels.permute(2, 0, 3, 1, 4), h, w)


def attention_of(qkv: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """(N, C, h, w) of q, k and v (3, N, heads, h w, channels of a head), by torch's fused kernels."""
    a = F.scaled_dot_product_attention(*qkv)
    return a.transpose(1, 2).reshape(len(a), h, w, -1).permute(0, 3, 1, 2)


def is_concatenation(node: AnyNode) -> bool:
    """Images joined along their channels."""
    if not isinstance(node, Node) or node.function is not torch.cat or len(node.output.shape) != 4:
        return False
    args, kwargs = node.args
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return dim == 1 and all(isinstance(part, Value) for part in args[0])


def parts_of(node: AnyNode) -> Sequence[Value]:
    """What a concatenation joins."""
    return node.args[0][0]


def last_uses(nodes: Sequence[AnyNode], output: Value) -> dict[AnyNode, list[Value]]:
    """The values that nobody reads after each node."""
    read_later, dead = {output}, {}
    for node in reversed(nodes):
        values = dict.fromkeys([*node.inputs(), *node.outputs])
        dead[node] = [value for value in values if value not in read_later]
        read_later.update(values)
    return dead


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same structure of lists, tuples, records and dicts with function(leaf) for all else."""
    if isinstance(tree, (list, tuple)):
        items = [map_leaves(function, item) for item in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*items)
        return items if isinstance(tree, list) else tuple(items)  # a torch.Size holds nothing but numbers
    if isinstance(tree, dict):
        return {key: map_leaves(function, item) for key, item in tree.items()}
    return function(tree)


def map_values(function: Callable[[Value], Any], tree: Any) -> Any:
    """The same with function(value) for every Value."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Value) else leaf, tree)


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The same with function(tensor) for every tensor."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)
