"""Inference plans on the CPU: the nodes of a traced network as native functions on one arena, images channels last.

Weights are packed once, or transformed at each call where that is as fast or there is no memory for more.
Concatenations cost nothing: what is to be joined is written side by side from the start. What no kernel takes (the
noise embedding, say) is left to torch, call by call.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

from edm_fast import backend
from edm_fast.errors import UserError
from edm_fast.native import Algorithm
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.conv2d.cpu import lower as lower_conv2d
from edm_fast.ops.conv2d.cpu import pack
from edm_fast.plan import _algorithms, _gradients
from edm_fast.plan._algorithms import Shape
from edm_fast.plan._batches import MANY
from edm_fast.plan._convolutions import Seconds, convolution, shape_of, with_algorithms
from edm_fast.plan._errors import Allowance, NetworkErrors, layers, probe_shapes, within
from edm_fast.plan._gradients import DifferentiableProgram
from edm_fast.plan._graph import (
    AnyNode,
    Fused,
    Graph,
    Node,
    SeparateQKVArgs,
    TorchArgs,
    Value,
    is_concatenation,
    map_tensors,
    map_values,
    parts_of,
)
from edm_fast.plan._memory import Place, Region, allocate
from edm_fast.plan._pool import Shapes
from edm_fast.plan._rewrite import fold_clip, rewrite, rewritten
from edm_fast.plan._tune import MeasuredAlgorithms
from edm_fast.plan._weights import Packing, Prepared, Weights

BoundCall = Callable[[int], None]  # called with the number of threads
View = Callable[[Value | torch.Tensor], torch.Tensor]
SMALL_NETWORK = 8 * 2**20  # bytes of weights that may be read again for every few images
PACKED_LIMIT = 1.0  # of larger networks: the most memory for packed weights, in that of their own
IMAGES_AT_ONCE = 2 * 2**20  # bytes of the widest layer's images (benchmarks/NOTES.md)


class Task(NamedTuple):
    """A node on its way to a step: what it touches, and how to bind it once every tensor has its place."""

    reads: Sequence[Value | torch.Tensor]
    writes: Sequence[Value]
    bind: Callable[[View], BoundCall]


class CpuPlanner:
    """Builds the programs of one network, which share their weights."""

    captured = False  # there are no graphs on CPUs

    def __init__(
        self,
        precision: str,
        packed_limit: float | None,
        allowance: Allowance | None = None,
        seconds: Seconds | None = None,
    ) -> None:
        self.precision, self.limit, self.allowance, self.seconds = precision, packed_limit, allowance, seconds
        self.errors: dict[Shapes, NetworkErrors] = {}
        self.prepared: WeakValueDictionary[Any, Prepared] = WeakValueDictionary()

    def images_at_once(self, graph: Graph) -> int:
        """How many images to evaluate together: many if weights are what has to be read, few enough for the
        second-level cache if images are."""
        images = [value.shape for node in graph.nodes for value in node.outputs if len(value.shape) == 4]
        if not is_small(graph) or not images:
            return MANY
        return max(1, IMAGES_AT_ONCE // (4 * max(math.prod(shape[1:]) for shape in images)))

    def __call__(self, graph: Graph, traced: Callable[[Shapes], Graph]) -> CpuProgram:
        """traced: the same network for other shapes."""
        calls, terms, plain = graph.op_calls(), self._terms(graph, self.precision), rewrite(rewritten(graph), fold_clip)

        def build(chosen: Graph, algorithms: Mapping[Node, Algorithm], *_: Any) -> CpuProgram:
            return _Builder(algorithms, Weights(_prepare, self.prepared)).program(chosen, calls)

        if self.allowance is None:
            return build(*with_algorithms(plain, *terms))
        errors, n = self._errors(graph, self.allowance.level, traced), graph.inputs["x"].shape[0]
        choose = functools.partial(errors.choose, plain, *terms)
        return within(self.allowance.max_error, choose, lambda c: build(*c), lambda program: errors.of(program.run, n))

    def _errors(self, graph: Graph, level: float, traced: Callable[[Shapes], Graph]) -> NetworkErrors:
        shapes = probe_shapes(graph)
        if shapes not in self.errors:
            self.errors[shapes] = NetworkErrors(traced(shapes), level, _algorithms.ALLOWED[self.precision])
        if self.errors[shapes].layers != layers(graph):
            raise UserError("max_error needs a network of the same layers in every batch; expected no max_error")
        return self.errors[shapes]

    def differentiable(self, graph: Graph) -> DifferentiableProgram:
        """The same for evaluations with gradients: products of float32 in "bf16", and "exact" ones in an allowance."""
        precision = "exact" if self.allowance else "fp32" if self.precision == "bf16" else self.precision
        terms = self._terms(graph, precision)
        return _gradients.on_cpu(graph, *terms, Weights(_prepare, self.prepared))

    def _terms(self, graph: Graph, precision: str) -> tuple[Seconds, float]:
        """The seconds of algorithms, and the limit of packed weights."""
        small = is_small(graph)
        seconds = self.seconds or MeasuredAlgorithms(precision, cold=not small)
        return seconds, self.limit if self.limit is not None else math.inf if small else PACKED_LIMIT


def is_small(graph: Graph) -> bool:
    """Whether the caches hold the network's weights from one call to the next."""
    sizes: list[int] = []
    for node in graph.nodes:
        if not isinstance(node.args, TorchArgs):
            map_tensors(lambda tensor: sizes.append(tensor.numel()), node.args)
    return 4 * sum(sizes) <= SMALL_NETWORK


def _prepare(tensor: torch.Tensor, layout: Packing | torch.memory_format | None) -> torch.Tensor:
    tensor = tensor.detach().to(torch.float32)
    if isinstance(layout, Packing):
        return pack(tensor, *layout)
    return tensor.contiguous(memory_format=layout or torch.contiguous_format)


class CpuProgram:
    """A network at one set of input shapes. Not for two threads at once: its arena is its own."""

    error: float | None = None  # of F, relative to float64, where that was measured

    def __init__(
        self,
        inputs: Mapping[str, torch.Tensor],
        output: torch.Tensor,
        steps: Sequence[BoundCall],
        memory: tuple[torch.Tensor, Weights],
        algorithms: Sequence[tuple[Shape, Algorithm]],
        calls: Counter[str],
    ) -> None:
        self.inputs, self.output, self.steps = inputs, output, steps
        self.arena, self.weights = memory  # the steps hold addresses in them
        self.algorithms, self.calls = algorithms, calls

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, a fresh contiguous tensor."""
        for name, view in self.inputs.items():
            view.copy_(inputs[name])
        threads = torch.get_num_threads()
        for step in self.steps:
            step(threads)
        return self.output.clone(memory_format=torch.contiguous_format)

    def finish(self) -> None:
        """Wait for the last call: here it is over when it returns."""


class _Builder:
    """Turns nodes into tasks, finds every tensor a place, lays out the arena and binds the tasks to it."""

    def __init__(self, algorithms: Mapping[Node, Algorithm], weights: Weights) -> None:
        self.algorithms, self.weights = algorithms, weights
        self.places: dict[Value, Place] = {}
        self.chosen: list[tuple[Shape, Algorithm]] = []

    def program(self, graph: Graph, calls: Counter[str]) -> CpuProgram:
        producers = {value: node for node in graph.nodes for value in node.outputs}
        for node in graph.nodes:
            if is_concatenation(node):
                self.join(node, producers)
        tasks = [self.task(node) for node in graph.nodes]
        arena = torch.empty(self.lay_out(graph, tasks), dtype=torch.float32, device="cpu")

        def view(value: Value | torch.Tensor) -> torch.Tensor:
            if isinstance(value, torch.Tensor):  # computed of the network's own tensors while it was traced
                return self.weights(value, torch.channels_last if value.ndim == 4 else None)
            return self.places[value].view(arena)

        inputs = {name: view(value) for name, value in graph.inputs.items()}
        steps = [task.bind(view) for task in tasks]
        return CpuProgram(inputs, view(graph.output), steps, (arena, self.weights), self.chosen, calls)

    def join(self, node: AnyNode, producers: Mapping[Value, AnyNode]) -> None:
        """Give the parts of a concatenation their place inside it, where their producers can write there."""
        place = self.place(node.output)
        start = 0
        for part in parts_of(node):
            producer = producers.get(part)
            if part not in self.places and producer is not None and writes_anywhere(producer):
                self.places[part] = Place(part.shape, place.region, place.start + start, place.pitch)
            start += part.shape[1]

    def place(self, value: Value) -> Place:
        """Where a value lies; a region of its own unless it has been given a part of another."""
        if value not in self.places:
            pitch = value.shape[1] if len(value.shape) == 4 else 0
            self.places[value] = Place(value.shape, Region(math.prod(value.shape)), 0, pitch)
        return self.places[value]

    def lay_out(self, graph: Graph, tasks: Sequence[Task]) -> int:
        """Each region lives from its first use to its last; inputs from the start, the output to the end."""
        for value in (*graph.inputs.values(), graph.output):
            self.place(value)
        for index, task in enumerate(tasks):
            for item in (*task.reads, *task.writes):
                if isinstance(item, Value):
                    self.place(item).region.use(index)
        for value in graph.inputs.values():
            self.places[value].region.use(0)
        self.places[graph.output].region.use(len(tasks))
        return allocate(list({place.region: None for place in self.places.values()}))

    def task(self, node: AnyNode) -> Task:
        if isinstance(node, Fused) or node in self.algorithms:
            return self.convolution(node)
        if is_concatenation(node):
            return self.concatenation(node)
        if len(node.output.shape) == 4 and native_code(node) is not None:
            return self.lowered(node, node.output)
        if convolution(node) is not None:  # no algorithm works
            op: Any = node.function
            node = Node(op.reference, node.args, node.outputs)
        return self.torch_call(node)

    def torch_call(self, node: Node) -> Task:
        """The call itself, its results copied to their places, which are float32: masks and indices are cast back."""
        inputs = node.inputs()
        cast = any(value.dtype != torch.float32 for value in inputs)

        def bind(view: View) -> BoundCall:
            # tensors, not `view`: a step that held it would keep its program alive in a circle
            tensors, outputs = {value: view(value) for value in inputs}, [view(value) for value in node.outputs]
            fixed = map_values(tensors.__getitem__, node.args)

            def step(threads: int) -> None:
                args = map_values(lambda value: tensors[value].to(value.dtype), node.args) if cast else fixed
                result = node.run(args)
                for to, found in zip(outputs, [result] if isinstance(result, torch.Tensor) else result):
                    to.copy_(found)

            return step

        return Task(inputs, node.outputs, bind)

    def concatenation(self, node: Node) -> Task:
        """Copies the parts that do not lie in place already."""
        whole, starts, start = self.place(node.output), {}, 0
        for part in parts_of(node):
            if self.place(part).region is not whole.region:
                starts[start] = part
            start += part.shape[1]

        def bind(view: View) -> BoundCall:
            joined = view(node.output)
            pairs = [(joined[:, at : at + part.shape[1]], view(part)) for at, part in starts.items()]

            def step(threads: int) -> None:
                for to, part in pairs:
                    to.copy_(part)

            return step

        return Task(node.inputs(), node.outputs, bind)

    def convolution(self, node: AnyNode) -> Task:
        """conv2d, perhaps with the norm or the upsampling of its image, or a linear layer."""
        conv, y, shape = convolution(node), node.output, shape_of(node)
        x, silu, before, affine = conv.x, False, None, None
        if isinstance(node, Fused):
            x = node.first.args.x
            if node.rule == "norm":
                affine, silu = Value((shape.n, 3 * shape.channels)), bool(node.first.args.silu)
                before = self.lowered(node.first, affine)
        algorithm = self.algorithms[node.second if isinstance(node, Fused) else node]
        self.chosen.append((shape, algorithm))
        packed = self.weights(conv.weight, Packing(algorithm) if algorithm.packed else None)
        balance = self.weights(conv.weight, Packing(algorithm)) if algorithm.paired and not algorithm.packed else None
        workspace = None if algorithm.packed else Value((_algorithms.workspace(shape, algorithm),))
        bias = None if conv.bias is None else self.weights(conv.bias).reshape(1, -1)
        emb, residual = conv.emb, conv.residual
        total = Value(emb.shape) if emb is not None and bias is not None else None  # emb + bias

        def bind(view: View) -> BoundCall:
            rows = view(emb) if emb is not None else bias
            vector = view(total) if total is not None else rows
            step = lower_conv2d(
                *(view(y), view(x), packed, algorithm, shape.kernel, shape.padding, vector),
                None if residual is None else view(residual),
                scale=conv.scale,
                silu=silu,
                clip=conv.clip,
                workspace=None if workspace is None else view(workspace),
                affine=None if affine is None else view(affine),
                balance=balance,
            )
            steps = [step]
            if before is not None:
                steps.insert(0, before.bind(view))
            if total is not None and rows is not None and bias is not None:
                steps.insert(0, functools.partial(add, rows, bias, vector))
            return steps[0] if len(steps) == 1 else functools.partial(in_turn, steps)

        reads: list[Value | torch.Tensor] = [
            x,
            *(v for v in (emb, residual) if v is not None),
            *(before.reads if before is not None else []),
        ]
        more = [*(v for v in (total, workspace) if v is not None), *(before.writes if before is not None else [])]
        return Task(reads, [y, *more], bind)

    def lowered(self, node: Node, result: Value) -> Task:
        """An op of images bound to the native code that has it; `result` is its output, or what it leaves in place of
        one."""
        how, args = native_code(node), map_tensors(self.weights, node.args)
        scratch = Value(how.scratch(node.args)) if how.scratch else None
        separate = {"separate": True} if isinstance(node.args, SeparateQKVArgs) else {}

        def bind(view: View) -> BoundCall:
            memory = None if scratch is None else view(scratch)
            return how.lower(view(result), map_values(view, args), memory, **separate)

        return Task(node.inputs(), [result] if scratch is None else [result, scratch], bind)


def native_code(node: AnyNode) -> Any:
    """The implementation whose `lower` binds the op that a node is, or None."""
    function = backend.ops()["attention"] if isinstance(node.args, SeparateQKVArgs) else getattr(node, "function", None)
    found = function.implementations.get("cpu") if isinstance(function, backend.Op) else None
    return found if found is not None and found.lower is not None else None


def add(a: torch.Tensor, b: torch.Tensor, total: torch.Tensor | None, threads: int) -> None:
    torch.add(a, b, out=total)


def in_turn(steps: list[BoundCall], threads: int) -> None:
    for step in steps:
        step(threads)


def writes_anywhere(node: AnyNode) -> bool:
    """Whether the node's result may lie inside a wider image."""
    if isinstance(node, Node) and isinstance(node.args, TorchArgs):
        return not is_concatenation(node)
    return isinstance(node, Fused) or isinstance(node.args, Conv2dArgs)
