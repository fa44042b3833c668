"""Inference plans on the GPU: from a traced network to a program.

Images lie channels last in the dtype of the precision, vectors stay in float32. Weights are cast and laid out once.
Nodes have one or more implementations, such as cuDNN and the fused kernels (`_implementations`); each is run and timed
where it is first met (`_tune`), and then they are chosen together (`_select`). One that fails later, while the program
is recorded, is dropped, too, and the others are chosen from again. "precision exact" keeps to the operations, order and
layout of the reference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from edm_fast.plan import _gpu_convolutions, _implementations
from edm_fast.plan._batches import MANY
from edm_fast.plan._gpu_program import ChosenCall, GpuProgram, Numerics, Values
from edm_fast.plan._gradients import DifferentiableProgram
from edm_fast.plan._graph import AnyNode, Fused, Graph, Node, Value, last_uses, map_tensors
from edm_fast.plan._rewrite import (
    fold_bias,
    fold_clip,
    fuse_gain,
    fuse_norm,
    fuse_upsampling,
    join_embeddings,
    rewrite,
    rewritten,
    skip_dropout,
)
from edm_fast.plan._select import Candidate, fastest, with_statistics
from edm_fast.plan._tune import Measure, MeasuredImplementations, raised, time_candidates
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


def fused(graph: Graph, dtype: torch.dtype) -> Graph:
    """What a plan of this dtype measures: nodes and pairs of them."""
    graph = rewrite(rewritten(graph), skip_dropout, fold_bias, fold_clip)
    return rewrite(join_embeddings(graph, dtype), fuse_norm, fuse_gain, fuse_upsampling)


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

    def __call__(self, graph: Graph, *_: Any) -> GpuProgram:
        weights = Weights(self._prepare, self.prepared)
        calls, nodes = graph.op_calls(), graph.nodes
        if not self.numerics.exact:
            graph = fused(graph, self.numerics.dtype)
            nodes = [_with_weights(node, weights) for node in graph.nodes]
        generator = torch.Generator(self.device).manual_seed(0)  # the caller's random numbers stay what they are
        inputs = {}
        for value in graph.inputs.values():
            noise = torch.randn(value.shape, generator=generator, device=self.device)
            inputs[value] = self.numerics.cast(noise)
        with self.numerics.switches():
            choice = Choices(self.measure)
            self._measure(choice, nodes, inputs, graph.output, weights)
            while True:
                steps = choice.steps()
                program = GpuProgram(steps, inputs, graph.output, self.numerics, weights, calls)
                try:
                    if self.captured:
                        weights.used.clear()
                        program.record()
                        weights.drop_unused()
                    return program
                except Exception as error:
                    choice.drop(program.running, error)

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

    def _measure(
        self,
        choice: Choices,
        nodes: Sequence[AnyNode],
        inputs: dict[Value, torch.Tensor],
        output: Value,
        weights: Weights,
    ) -> None:
        """The candidates of every node, all of them run once and timed, on noise for an input."""
        wanted = {} if self.numerics.exact else _implementations.wanted_statistics(nodes)
        choice.images = {n: norm.x for n in nodes if (norm := _implementations.norm_with(n, wanted)) is not None}
        choice.dead = last_uses(nodes, output)
        values = Values(inputs, self.numerics)
        for node in nodes:
            args, image = values.args(node), choice.images.get(node)
            stats = {"stats": values.statistics[image]} if image in values.statistics else {}
            if self.numerics.exact:
                found = _implementations.exact(node)
            else:
                found = _implementations.candidates(node, args, weights, wanted.get(node.output), bool(stats))
            candidates = choice.add(node, self._key(node, args), self._timed(node, args, found, stats))
            while True:  # a table of another day says what works
                step = ChosenCall(node, fastest(candidates[node]), image, choice.dead[node])
                try:
                    values.run(step, args)
                    break
                except Exception as error:
                    choice.drop(step, error)
            if (
                any(candidate.leaves_statistics for candidate in candidates[node])
                and node.output not in values.statistics
            ):
                # for the readers' candidates that need them
                result = values.tensors[node.output]
                values.statistics[node.output] = _implementations.statistics_of(result, *wanted[node.output])

    def _key(self, node: AnyNode, args: Any) -> str:
        benchmark = " benchmark" if torch.backends.cudnn.benchmark else ""
        return f"{self.numerics.dtype} {self.numerics.tf32} {_implementations.described(node, args)}{benchmark}"

    def _timed(
        self, node: AnyNode, args: Any, found: Sequence[Candidate], stats: dict[str, torch.Tensor]
    ) -> list[Candidate]:
        """Those that work, with their seconds. Two kernels in turn take what each of them takes, which other nodes ask
        for, too: there are dozens of such pairs."""
        halves = [candidate.halves for candidate in found if candidate.halves]
        before, after = ([*{pair[i].name: pair[i] for pair in halves}.values()] for i in (0, 1))
        if not isinstance(node, Fused) or min(len(before), len(after)) < 2:
            calls = {
                c.name: functools.partial(c.implementation, args, **(stats if c.needs_statistics else {}))
                for c in found
            }
            return time_candidates(found, calls, self._key(node, args), self.measure)
        second = args[1]._replace(x=before[0].implementation(args[0]))
        timed = self._timed(node.first, args[0], before, stats), self._timed(node.second, second, after, {})
        seconds = [{candidate.name: candidate.seconds for candidate in some} for some in timed]
        pairs = []
        for candidate in found:
            names = [half.name for half in candidate.halves or ()]
            if names and all(name in known for name, known in zip(names, seconds)):
                total = sum(known[name] for name, known in zip(names, seconds))
                pairs.append(dataclasses.replace(candidate, seconds=total))
        others = [candidate for candidate in found if not candidate.halves]
        first, *merged = self._timed(node, args, [dataclasses.replace(found[0], halves=None), *others], stats)
        return [first if others else pairs[0], *pairs[1:], *merged]


class Choices:
    """The candidates of the nodes of a plan, and which of them run; one that fails is dropped wherever it would run."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.candidates: dict[AnyNode, list[Candidate]] = {}
        self.keys: dict[AnyNode, str] = {}
        self.images: dict[AnyNode, Value] = {}  # whose statistics a node could use
        self.dead: Mapping[AnyNode, Sequence[Value]] = {}

    def add(self, node: AnyNode, key: str, candidates: list[Candidate]) -> dict[AnyNode, list[Candidate]]:
        """Candidates of one more node, of calls of this key."""
        self.keys[node], self.candidates[node] = key, candidates
        return self.candidates

    def steps(self) -> list[ChosenCall]:
        selected = with_statistics(self.candidates, self.images)
        return [ChosenCall(n, selected[n], self.images.get(n), self.dead[n]) for n in self.candidates]

    def drop(self, step: ChosenCall | None, error: Exception) -> None:
        """Go on without the candidate of this step; where no step is known, with torch's alone. Raises the error if
        those failed, or if memory is short."""
        firsts = {node: found[0].name for node, found in self.candidates.items()}
        if isinstance(error, torch.cuda.OutOfMemoryError) or all(len(found) == 1 for found in self.candidates.values()):
            raise error
        if step is None:
            self.candidates = {node: found[:1] for node, found in self.candidates.items()}
            return
        key, name = self.keys[step.node], step.candidate.name
        if name == firsts[step.node]:
            raise error
        if isinstance(self.measure, MeasuredImplementations):
            self.measure.drop(f"{name} {key}", raised(error))
        for node, found in self.candidates.items():
            if self.keys[node] == key:
                found[:] = [c for c in found if name not in (c.name, c.base)]


def _with_weights(node: AnyNode, weights: Weights) -> Any:
    """The node with the network's own tensors as its kernels read them."""
    if isinstance(node, Fused):
        return Fused(node.rule, _with_weights(node.first, weights), _with_weights(node.second, weights))
    takes_images = _implementations.takes_images(node)
    return Node(node.function, map_tensors(weights, node.args), node.outputs) if takes_images else node
