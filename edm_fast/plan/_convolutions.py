"""The convolutions of a traced network on CPUs: what each takes in of the nodes around it, and on which algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edm_fast.native import Algorithm
from edm_fast.plan._algorithms import Shape, fastest, packed_size
from edm_fast.plan._rewrite import uses_of
from edm_fast.plan._trace import Node, Value

Choose = Callable[[Shape], Mapping[Algorithm, float]]  # the algorithms to choose from, with their seconds


def is_convolution(node: Node) -> bool:
    """Whether the native convolution has a kernel for the node."""
    return node.kind == "conv2d" and node.kwargs["weight"].shape[-1] in (1, 3)


def shape_of(node: Node) -> Shape:
    k = node.kwargs
    n, channels, h, w = (*k["x"].shape, 1, 1)[:4]
    outputs, _, kernel, _ = (*k["weight"].shape, 1, 1)[:4]
    padding = kernel // 2 if k.get("padding") is None else k["padding"]
    return Shape(n, channels, h, w, outputs, kernel, padding, k.get("doubled", False))


def doubled_or_apart(node: Node, choose: Choose) -> list[Node]:
    """An upsampling and the convolution after it as one convolution of a doubled image, or as they were."""
    if node.kind != "pair":
        return [node]
    first, second = node.kwargs["first"], node.kwargs["second"]
    x = first["x"]
    ops: Any = node.function
    merged = Node("conv2d", ops[1], (), {**second, "x": x, "doubled": True}, node.outputs)
    if first["up"] == 2 and second["weight"].shape[-1] == 3:
        seconds = choose(shape_of(merged))
        if seconds and fastest(seconds).doubled:
            return [merged]
    n, c, h, w = x.shape
    wide = Value((n, c, first["up"] * h, first["up"] * w))
    return [
        Node("upfirdn", ops[0], (), first, [wide]),
        Node("conv2d", ops[1], (), {**second, "x": wide}, node.outputs),
    ]


def chosen(nodes: list[Node], choose: Choose, limit: float) -> dict[Node, Algorithm]:
    """The algorithm of each convolution: the fastest, or a slower one that packs less, so that packed weights stay
    within `limit` times the memory of their own. Given up first is what saves the least time for its memory. What has
    no algorithm that works is left out."""
    seconds: dict[Node, dict[Algorithm, float]] = {}
    for node in nodes:
        doubled = node.kwargs.get("doubled", False)
        seconds[node] = {a: s for a, s in choose(shape_of(node)).items() if a.doubled == doubled}
    nodes = [node for node in nodes if seconds[node]]
    floats = {node: {a: packed_size(shape_of(node), a) if a.packed else 0 for a in seconds[node]} for node in nodes}
    found = {node: fastest(seconds[node]) for node in nodes}
    excess = sum(floats[node][a] for node, a in found.items()) - limit * sum(n.kwargs["weight"].numel() for n in nodes)
    while excess > 0:
        changes = [
            ((seconds[node][b] - seconds[node][a]) / (floats[node][a] - floats[node][b]), index, b)
            for index, (node, a) in enumerate(found.items())
            for b in seconds[node]
            if floats[node][b] < floats[node][a]
        ]
        if not changes:
            break
        _, index, algorithm = min(changes)
        node = nodes[index]
        excess -= floats[node][found[node]] - floats[node][algorithm]
        found[node] = algorithm
    return found


def norms_within(nodes: list[Node], output: Value, algorithms: Mapping[Node, Algorithm]) -> dict[Node, Node]:
    """The convolutions that take the norm of their image as they read it, with the norm: of an image that nothing else
    reads, on algorithms that read every pixel once or nearly so."""
    uses = uses_of(nodes, output)
    norms = {node.outputs[0]: node for node in nodes if node.kind == "group_norm_silu"}
    found: dict[Node, Node] = {}
    for node, algorithm in algorithms.items():
        x = node.kwargs["x"]
        if x in norms and not algorithm.packed and not algorithm.doubled and uses[x] == [node]:
            found[node] = norms[x]
    return found
