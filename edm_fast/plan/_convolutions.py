"""CPU plans: the algorithm each convolution runs on, and what it takes in of the node before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from edm_fast import native
from edm_fast.native import Algorithm
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.plan._algorithms import Shape, packed_size
from edm_fast.plan._graph import AnyNode, Fused, Graph, LinearArgs, Node
from edm_fast.plan._rewrite import fuse_gain, fuse_norm, fuse_upsampling, rewrite
from edm_fast.plan._select import Candidate, fastest, within_memory

Seconds = Callable[[Shape], Mapping[Algorithm, float]]  # of the algorithms to choose from
Price = Callable[[AnyNode, Algorithm], float]  # seconds that the error of an algorithm of a convolution counts for


def convolution(node: AnyNode) -> Any:
    """The arguments of the native convolution that a node is or ends with, or None. A linear layer is one of pixels."""
    args = node.second.args if isinstance(node, Fused) else node.args
    if isinstance(args, LinearArgs):
        return Conv2dArgs(args.x, args.weight[:, :, None, None], args.bias)
    return args if isinstance(args, Conv2dArgs) and args.weight.shape[-1] in (1, 3) else None


def shape_of(node: AnyNode) -> Shape:
    conv = convolution(node)
    x = node.first.args.x if isinstance(node, Fused) else conv.x
    n, channels, h, w = (*x.shape, 1, 1)[:4]
    outputs, _, kernel, _ = conv.weight.shape
    doubled = isinstance(node, Fused) and node.rule == "upsampling"
    return Shape(n, channels, h, w, outputs, kernel, conv.pad(), doubled)


def convolutions(graph: Graph) -> list[AnyNode]:
    """Those of images, whose algorithms there is a choice of."""
    return [n for n in graph.nodes if convolution(n) is not None and not isinstance(n.args, LinearArgs)]


def merged(first: Node, second: Node) -> list[AnyNode] | None:
    """An upsampling and the convolution of its image that some algorithms take as one."""
    fused = fuse_upsampling(first, second)
    return fused if fused and first.args.up == 2 and second.args.weight.shape[-1] == 3 else None


def free(node: AnyNode, algorithm: Algorithm) -> float:
    """The price of errors where none is asked for."""
    return 0.0


def with_algorithms(
    graph: Graph, seconds: Seconds, limit: float, price: Price = free
) -> tuple[Graph, dict[Node, Algorithm]]:
    """The graph with what its convolutions take in of the nodes before them, and the algorithm of each.

    A convolution for which no algorithm works is not among the latter.

    limit: of the memory of packed weights, in that of the convolutions' own.
    """

    def candidates(node: AnyNode) -> list[Candidate]:
        own = node.second if isinstance(node, Fused) else node
        found = candidates_of(shape_of(node), seconds)
        return [dataclasses.replace(c, seconds=c.seconds + price(own, c.implementation)) for c in found]

    def merge_upsampling(first: Node, second: Node) -> list[AnyNode] | None:
        """Where an algorithm that merges the two is the fastest."""
        fused = merged(first, second)
        found = candidates(fused[0]) if fused else []
        return fused if found and fastest(found).implementation.doubled else None

    def merge_norm(first: Node, second: Node) -> list[AnyNode] | None:
        """Where the algorithm reads every pixel once or nearly so, and need not have it normalised before."""
        algorithm = algorithms.get(second)
        reads_once = algorithm is not None and not algorithm.packed and not algorithm.doubled
        return fuse_norm(first, second) or fuse_gain(first, second) if reads_once else None

    graph = rewrite(graph, merge_upsampling)
    found = {}
    for node in convolutions(graph):
        found[node] = [c for c in candidates(node) if c.implementation.doubled == isinstance(node, Fused)]
    found = {node: able for node, able in found.items() if able}
    selected = within_memory(found, limit * sum(convolution(node).weight.numel() for node in found))
    linear = [node for node in graph.nodes if isinstance(node.args, LinearArgs)]
    algorithms: dict[Any, Algorithm] = dict.fromkeys(linear, native.ALGORITHMS["direct"])
    algorithms |= {n.second if isinstance(n, Fused) else n: c.implementation for n, c in selected.items()}
    return rewrite(graph, merge_norm), algorithms


def candidates_of(shape: Shape, seconds: Seconds) -> list[Candidate]:
    return [Candidate(a.name, a, time, packed_size(shape, a) if a.packed else 0) for a, time in seconds(shape).items()]
