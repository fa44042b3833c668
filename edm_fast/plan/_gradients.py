"""Evaluations with gradients: a traced network call by call, followed by autograd. Its weights are constants.

On the CPU each convolution and its adjoint, which takes the gradient of its result to that of its image, run on the
algorithms measured for them, on packed weights. On a GPU the ops choose for themselves, in the dtype of the precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from edm_fast.native import Algorithm
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.conv2d.cpu import on_algorithms
from edm_fast.plan._convolutions import Seconds, candidates_of, convolution, shape_of
from edm_fast.plan._graph import AnyNode, Graph, Node, last_uses, map_values
from edm_fast.plan._select import Candidate, within_memory
from edm_fast.plan._weights import Packing, Weights

Call = Callable[[Any, Any], Any]  # what a node computes, of its arguments with tensors in place of Values


class DifferentiableProgram:
    """A network at one set of input shapes. Threads may use it at the same time."""

    def __init__(self, graph: Graph, call: Call, cast: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.graph, self.call, self.cast = graph, call, cast
        self.dead = last_uses(graph.nodes, graph.output)
        self.calls: Counter[str] = Counter()  # the ops count themselves

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, float32 and contiguous."""
        return self.output(inputs).to(torch.float32).contiguous()

    def output(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As the last node gives it."""
        values = {value: self.cast(inputs[name]) for name, value in self.graph.inputs.items()}
        for node in self.graph.nodes:
            result = self.call(node, map_values(values.__getitem__, node.args))
            values.update(zip(node.outputs, [result] if isinstance(result, torch.Tensor) else result))
            for value in self.dead[node]:  # autograd holds what it needs
                values.pop(value, None)
        return values[self.graph.output]

    def finish(self) -> None:
        """Wait for the last call: it holds no memory that another one could write to."""


class _Place(NamedTuple):
    """Where a convolution, or the adjoint of one, stands in a network."""

    weight: int  # its address
    image: tuple[int, ...]
    transposed: bool


def _place(image: torch.Tensor, weight: torch.Tensor, transposed: bool) -> _Place:
    return _Place(weight.data_ptr(), tuple(image.shape), transposed)


def on_cpu(graph: Graph, seconds: Seconds, limit: float, weights: Weights) -> DifferentiableProgram:
    """limit: of the memory of packed weights, in that of the convolutions' own."""
    convolutions: set[AnyNode] = set()
    candidates: dict[_Place, list[Candidate]] = {}
    size = 0
    for node in graph.nodes:
        args = convolution(node) if isinstance(node.args, Conv2dArgs) else None
        if args is not None and args.pad() < args.weight.shape[-1]:
            address, shapes = weights(args.weight).data_ptr(), (shape_of(node), shape_of(node).adjoint())
            places = [_Place(address, (s.n, s.channels, s.h, s.w), s is shapes[1]) for s in shapes]
            found = [candidates_of(shape, seconds) for shape in shapes]
            if all(found):
                size += args.weight.numel()
                convolutions.add(node)
                candidates.update(zip(places, found))
    selected = within_memory(candidates, limit * size)

    def choose(image: torch.Tensor, weight: torch.Tensor, transposed: bool) -> Algorithm:
        return selected[_place(image, weight, transposed)].implementation

    def packed(weight: torch.Tensor, algorithm: Algorithm, transposed: bool) -> torch.Tensor:
        return weights(weight, Packing(algorithm, transposed))

    convolve = on_algorithms(choose, packed)

    def call(node: Node, args: Any) -> Any:
        return convolve(args._replace(weight=weights(args.weight))) if node in convolutions else node.run(args)

    return DifferentiableProgram(graph, call, lambda tensor: tensor.to(torch.float32))
