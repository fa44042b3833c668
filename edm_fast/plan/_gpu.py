"""Inference plans on the GPU: from a traced network to a program.

Images lie channels last in the dtype of the precision, vectors stay in float32. Weights are cast and laid out once.
Nodes have one or more implementations, such as cuDNN and the fused kernels (`_implementations`); each is run and timed
where it is first met (`_tune`), and then they are chosen together (`_select`). "precision exact" keeps to the
operations, order and layout of the reference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from edm_fast.plan import _gpu_convolutions, _implementations
from edm_fast.plan._batches import MANY
from edm_fast.plan._gpu_program import ChosenCall, GpuProgram, Numerics, Values, tensor_float
from edm_fast.plan._gradients import DifferentiableProgram
from edm_fast.plan._graph import AnyNode, Fused, Graph, Node, Value, last_uses, map_tensors
from edm_fast.plan._rewrite import fuse_norm, fuse_upsampling, join_embeddings, rewrite, rewritten
from edm_fast.plan._select import Candidate, fastest, with_statistics
from edm_fast.plan._tune import Measure, MeasuredImplementations, time_candidates
from edm_fast.plan._weights import Prepared, Weights

PRECISIONS = {
    "exact": Numerics(torch.float32, exact=True),
    "fp32": Numerics(torch.float32),
    "tf32": Numerics(torch.float32, tf32=True),
    "bf16": Numerics(torch.bfloat16),
    "fp16": Numerics(torch.float16),
}


def captures(device: torch.device) -> bool:
    """Whether there are graphs on this device."""
    return device.type == "cuda"


class GpuPlanner:
    """Builds the programs of one network on one device, which share their weights."""

    def __init__(self, precision: str, device: torch.device, cuda_graph: bool, measure: Measure | None = None) -> None:
        self.numerics, self.device = PRECISIONS[precision], device
        self.captured = cuda_graph and captures(device)
        self.measure = measure or MeasuredImplementations(device)
        self.prepared: WeakValueDictionary[Any, Prepared] = WeakValueDictionary()

    def images_at_once(self, graph: Graph) -> int:
        """All of them: a GPU is not full with a few."""
        return MANY

    def __call__(self, graph: Graph) -> GpuProgram:
        weights = Weights(self._prepare, self.prepared)
        calls, nodes = graph.op_calls(), graph.nodes
        if not self.numerics.exact:
            graph = rewrite(join_embeddings(rewritten(graph)), fuse_norm, fuse_upsampling)
            nodes = [_with_weights(node, weights) for node in graph.nodes]
        generator = torch.Generator(self.device).manual_seed(0)  # the caller's random numbers stay what they are
        inputs = {}
        for value in graph.inputs.values():
            noise = torch.randn(value.shape, generator=generator, device=self.device)
            inputs[value] = self.numerics.cast(noise)
        with tensor_float(self.numerics.tf32):
            steps = self._steps(nodes, inputs, graph.output, weights)
            return GpuProgram(steps, inputs, graph.output, self.numerics, weights, calls, self.captured)

    def differentiable(self, graph: Graph) -> DifferentiableProgram:
        """The same for evaluations with gradients: those of the network with images in the dtype of the precision."""
        weights = Weights(self._prepare, self.prepared)
        exact, dtype = self.numerics.exact, self.numerics.dtype
        if not exact:
            graph = dataclasses.replace(graph, nodes=[_with_weights(node, weights) for node in graph.nodes])

        def call(node: Node, args: Any) -> Any:
            if not exact and _implementations.takes_images(node):
                args = map_tensors(lambda tensor: tensor.to(dtype), args)
            return node.run(args)

        return DifferentiableProgram(graph, call, self.numerics.cast)

    def _prepare(self, tensor: torch.Tensor, layout: str | None) -> torch.Tensor:
        if layout is not None:
            return _gpu_convolutions.pack(tensor, layout, self.numerics.dtype)
        cast = tensor.detach().to(self.numerics.dtype)
        return cast.contiguous(memory_format=torch.channels_last) if cast.ndim == 4 else cast

    def _steps(
        self, nodes: Sequence[AnyNode], inputs: dict[Value, torch.Tensor], output: Value, weights: Weights
    ) -> list[ChosenCall]:
        """Every node on its candidate; all candidates are run once and timed, on noise for an input."""
        wanted = {} if self.numerics.exact else _implementations.wanted_statistics(nodes)
        images = {node: norm.x for node in nodes if (norm := _implementations.norm_with(node, wanted)) is not None}
        dead = last_uses(nodes, output)
        values = Values(inputs, self.numerics)
        candidates: dict[AnyNode, list[Candidate]] = {}
        for node in nodes:
            args, image = values.args(node), images.get(node)
            stats = {"stats": values.statistics[image]} if image in values.statistics else {}
            if self.numerics.exact:
                found = _implementations.exact(node)
            else:
                found = _implementations.candidates(node, args, weights, wanted.get(node.output), bool(stats))
            calls = {
                candidate.name: functools.partial(
                    candidate.implementation, args, **(stats if candidate.needs_statistics else {})
                )
                for candidate in found
            }
            key = f"{self.numerics.dtype} {self.numerics.tf32} {_implementations.described(node, args)}"
            candidates[node] = time_candidates(found, calls, key, self.measure)
            candidate = fastest(candidates[node])
            values.run(ChosenCall(node, candidate, image, dead[node]), args)
            if (
                any(candidate.leaves_statistics for candidate in candidates[node])
                and node.output not in values.statistics
            ):
                # for the readers' candidates that need them
                result = values.tensors[node.output]
                values.statistics[node.output] = _implementations.statistics_of(result, *wanted[node.output])
        selected = with_statistics(candidates, images)
        return [ChosenCall(node, selected[node], images.get(node), dead[node]) for node in nodes]


def _with_weights(node: AnyNode, weights: Weights) -> Any:
    """The node with the network's own tensors as its kernels read them."""
    if isinstance(node, Fused):
        return Fused(node.rule, _with_weights(node.first, weights), _with_weights(node.second, weights))
    takes_images = _implementations.takes_images(node)
    return Node(node.function, map_tensors(weights, node.args), node.outputs) if takes_images else node
