"""Inference plans on the CPU: the calls of a traced network as native functions on one arena, images channels last.

Weights are packed once, or transformed at each call where that is as fast or there is no memory for more.
Concatenations cost nothing: what is to be joined is written side by side from the start. What no kernel takes (the
noise embedding, say) is left to torch, call by call.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from edm_fast import native
from edm_fast.ops.conv2d.cpu import pack
from edm_fast.plan import _algorithms
from edm_fast.plan._algorithms import (
    BALANCED,
    DIRECT,
    PLAIN,
    Shape,
    bind_upfirdn,
)
from edm_fast.plan._convolutions import Choose, chosen, doubled_or_apart, is_convolution, norms_within, shape_of
from edm_fast.plan._memory import Place, Region, allocate
from edm_fast.plan._rewrite import join_pairs, rewritten
from edm_fast.plan._trace import MANY, Graph, Node, Value, map_values, op_calls
from edm_fast.plan._tune import MeasuredAlgorithms
from edm_fast.plan._ways import as_written

Step = Callable[[int], None]  # called with the number of threads
SMALL_NETWORK = 8 * 2**20  # bytes of weights that may be read again for every few images
PACKED_LIMIT = 1.0  # of larger networks: the most memory for packed weights, in that of their own
IMAGES_AT_ONCE = 2 * 2**20  # bytes of the widest layer's images (benchmarks/NOTES.md)


@dataclasses.dataclass
class Task:
    """A node on its way to a step: what it touches, and how to bind it once every tensor has its place."""

    reads: list[Value]
    writes: list[Value]
    bind: Callable[[Callable[[Value], torch.Tensor]], Step]


class Weights:
    """Packed weights, shared by the programs that use them and gone with the last of these.

    Found by address: whoever holds a packed weight holds the weight as well.
    """

    def __init__(self) -> None:
        self.packed: weakref.WeakValueDictionary[tuple[Any, ...], torch.Tensor] = weakref.WeakValueDictionary()

    def __call__(self, weight: torch.Tensor, algorithm: int) -> torch.Tensor:
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride(), algorithm)
        found = self.packed.get(key)
        if found is None:
            found = self.packed[key] = pack(weight.to(torch.float32), algorithm)
        return found


class Planner:
    """Makes the programs of one network, which share their weights."""

    captured = False  # there are no graphs on CPUs

    def __init__(self, precision: str, packed_limit: float | None, choose: Choose | None = None) -> None:
        self.precision, self.choose = precision, choose
        self.limit = packed_limit
        self.weights = Weights()

    def __call__(self, graph: Graph) -> Program:
        choose = self.choose or MeasuredAlgorithms(self.precision, cold=not is_small(graph))
        limit = self.limit if self.limit is not None else math.inf if is_small(graph) else PACKED_LIMIT
        return Program(graph, choose, self.weights, limit)

    def images_at_once(self, graph_of_one: Callable[[], Graph]) -> int:
        """How many images to evaluate together: many if weights are what has to be read, few enough for the
        second-level cache if images are."""
        graph = graph_of_one()
        images = [value.shape for node in graph.nodes for value in node.outputs if len(value.shape) == 4]
        if not is_small(graph) or not images:
            return MANY
        return max(1, IMAGES_AT_ONCE // (4 * max(math.prod(shape) for shape in images)))


class Program:
    """A network at one set of input shapes. Not for two threads at once: its arena is its own."""

    def __init__(self, graph: Graph, choose: Choose, weights: Weights, limit: float) -> None:
        self.calls = op_calls(graph)
        self.kept: list[torch.Tensor] = []
        self.algorithms: list[tuple[Shape, int]] = []
        builder = _Builder(graph, choose, weights, limit, self)
        self.arena = torch.empty(builder.size, dtype=torch.float32, device="cpu")
        self.inputs = {name: builder.places[value].view(self.arena) for name, value in graph.inputs.items()}
        self.output = builder.places[graph.output].view(self.arena)
        self.steps = [task.bind(lambda value: builder.places[value].view(self.arena)) for task in builder.tasks]

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
    """Turns nodes into tasks, finds every tensor a place, and lays out the arena."""

    def __init__(self, graph: Graph, choose: Choose, weights: Weights, limit: float, program: Program) -> None:
        self.weights, self.program = weights, program
        self.places: dict[Value, Place] = {}
        self.tasks: list[Task] = []
        nodes = join_pairs(rewritten(graph), graph.output, ("upfirdn",))
        nodes = [part for node in nodes for part in doubled_or_apart(node, choose)]
        producers = {value: node for node in nodes for value in node.outputs}
        self.chosen = chosen([node for node in nodes if is_convolution(node)], choose, limit)
        self.norms = norms_within(nodes, graph.output, self.chosen)
        nodes = [node for node in nodes if node not in self.norms.values()]
        for node in nodes:
            if is_concatenation(node):
                self.join(node, producers)
        for node in nodes:
            self.tasks.append(self.task(node))
        self.size = self.lay_out(graph)

    def join(self, node: Node, producers: Mapping[Value, Node]) -> None:
        """Give the parts of a concatenation their place inside it, where their producers can write there."""
        place = self.places.get(node.outputs[0]) or self.place(node.outputs[0])
        start = 0
        for part in node.args[0]:
            producer = producers.get(part)
            if part not in self.places and producer is not None and writes_anywhere(producer):
                self.places[part] = Place(part.shape, place.region, place.start + start, place.pitch)
            start += part.shape[1]

    def place(self, value: Value) -> Place:
        """Where a value lies; a region of its own unless it has been given a part of another."""
        if value not in self.places:
            size = 1
            for length in value.shape:
                size *= length
            pitch = value.shape[1] if len(value.shape) == 4 else 0
            self.places[value] = Place(value.shape, Region(size), 0, pitch)
        return self.places[value]

    def lay_out(self, graph: Graph) -> int:
        """Each region lives from its first use to its last; inputs from the start, the output to the end."""
        for value in (*graph.inputs.values(), graph.output):
            self.place(value)
        for index, task in enumerate(self.tasks):
            for value in (*task.reads, *task.writes):
                self.place(value).region.use(index)
        for value in graph.inputs.values():
            self.places[value].region.use(0)
        self.places[graph.output].region.use(len(self.tasks))
        return allocate(list({place.region: None for place in self.places.values()}))

    def task(self, node: Node) -> Task:
        if is_concatenation(node):
            return self.concatenation(node)
        if node.kind == "linear" or node in self.chosen:
            return self.convolution(node)
        if is_convolution(node):  # no algorithm works
            return self.torch_call(dataclasses.replace(node, function=as_written(node)["reference"].run))
        if len(node.outputs[0].shape) == 4 and node.kind in ("group_norm_silu", "upfirdn", "attention"):
            return {"group_norm_silu": self.norm, "upfirdn": self.resampling, "attention": self.attention}[node.kind](
                node
            )
        return self.torch_call(node)

    def torch_call(self, node: Node) -> Task:
        """The call itself, its results copied to their places, which are float32: masks and indices are cast back."""
        cast = any(value.dtype != torch.float32 for value in node.inputs())

        def bind(view: Callable[[Value], torch.Tensor]) -> Step:
            # places, not `view`: a step that held it would keep its program alive in a circle
            places = {value: view(value) for value in node.inputs()}
            tree, outputs = (node.args, node.kwargs), [view(value) for value in node.outputs]
            args, kwargs = map_values(places.__getitem__, tree)

            def step(threads: int) -> None:
                given = map_values(lambda value: places[value].to(value.dtype), tree) if cast else (args, kwargs)
                result = node.run(*given)
                for to, found in zip(outputs, [result] if isinstance(result, torch.Tensor) else result):
                    to.copy_(found)

            return step

        return Task(node.inputs(), node.outputs, bind)

    def concatenation(self, node: Node) -> Task:
        """Copies the parts that do not lie in place already."""
        joined, starts, start = self.place(node.outputs[0]), {}, 0
        for part in node.args[0]:
            if self.place(part).region is not joined.region:
                starts[start] = part
            start += part.shape[1]

        def bind(view: Callable[[Value], torch.Tensor]) -> Step:
            whole = view(node.outputs[0])
            pairs = [(whole[:, at : at + part.shape[1]], view(part)) for at, part in starts.items()]

            def step(threads: int) -> None:
                for to, part in pairs:
                    to.copy_(part)

            return step

        return Task(node.inputs(), node.outputs, bind)

    def convolution(self, node: Node) -> Task:
        """conv2d, perhaps of the norm of an image, or a linear layer as a convolution of images of one pixel."""
        k, norm = node.kwargs, self.norms.get(node)
        y, emb, residual = node.outputs[0], k.get("emb"), k.get("residual")
        before = None if norm is None else self.norm(norm, whole=False)
        x, affine = (k["x"], None) if norm is None or before is None else (norm.kwargs["x"], before.writes[0])
        weight = k["weight"] if k["weight"].ndim == 4 else k["weight"][:, :, None, None]
        shape, algorithm = shape_of(node), self.chosen.get(node, DIRECT)
        self.program.algorithms.append((shape, algorithm))
        packed = weight.float().contiguous() if algorithm in PLAIN else self.weights(weight, algorithm)
        balance = self.weights(weight, algorithm) if algorithm in BALANCED else None
        room = Value((_algorithms.workspace(shape, algorithm),)) if algorithm in PLAIN else None
        bias = None if k["bias"] is None else k["bias"].detach().to(torch.float32).reshape(1, -1).contiguous()
        # the weight itself too, which `rewritten` may have made: another one must not be found at its address
        self.program.kept += [t for t in (packed, weight, bias, balance) if t is not None]
        tail = Value(emb.shape) if emb is not None and bias is not None else None  # emb + bias

        def bind(view: Callable[[Value], torch.Tensor]) -> Step:
            rows = view(emb) if emb is not None else bias
            total = view(tail) if tail is not None else rows
            (to, to_pitch), (source, pitch) = native.window(view(y)), native.window(view(x))
            other, other_pitch = native.window(view(residual)) if residual is not None else (0, 0)
            vector, count = (native.window(total)[0], total.shape[0]) if total is not None else (0, 0)
            step = _algorithms.bind(
                shape,
                algorithm,
                y=to,
                x=source,
                weight=packed.data_ptr(),
                bias=vector,
                residual=other,
                bias_rows=count,
                y_pitch=to_pitch,
                x_pitch=pitch,
                residual_pitch=other_pitch,
                scale=float(k.get("scale", 1.0)),
                workspace=None if room is None else view(room).data_ptr(),
                affine=None if affine is None else view(affine).data_ptr(),
                silu=norm is not None and bool(norm.kwargs["silu"]),
                balance=None if balance is None else balance.data_ptr(),
            )
            steps = [step]
            if before is not None:
                steps.insert(0, before.bind(view))
            if tail is not None and rows is not None and bias is not None:
                steps.insert(0, functools.partial(add, rows, bias, total))
            return steps[0] if len(steps) == 1 else functools.partial(in_turn, steps)

        reads = [x, *(v for v in (emb, residual) if v is not None), *(before.reads if before is not None else [])]
        more = [*(v for v in (tail, room) if v is not None), *(before.writes if before is not None else [])]
        return Task(reads, [y, *more], bind)

    def norm(self, node: Node, whole: bool = True) -> Task:
        """The normalised image, or the numbers by which a convolution normalises it."""
        k, y = node.kwargs, node.outputs[0]
        x, scale, shift = k["x"], k["scale"], k["shift"]
        own = [k[name].detach().to(torch.float32).contiguous() for name in ("weight", "bias")]
        self.program.kept += own
        n, c, h, w = x.shape
        stats = Value((3, n, k["groups"]))
        result = y if whole else Value((n, 3 * c))

        def bind(view: Callable[[Value], torch.Tensor]) -> Step:
            source, pitch = native.window(view(x))
            return native.bind(
                "group_norm_silu_fwd_cpu",
                x=source,
                **{"y" if whole else "affine": view(result).data_ptr()},
                stats=view(stats).data_ptr(),
                weight=own[0].data_ptr(),
                bias=own[1].data_ptr(),
                scale=None if scale is None else native.window(view(scale))[0],
                shift=None if shift is None else native.window(view(shift))[0],
                n=n,
                c=c,
                space=h * w,
                groups=k["groups"],
                scale_rows=0 if scale is None else scale.shape[0],
                shift_rows=0 if shift is None else shift.shape[0],
                eps=float(k["eps"]),
                silu=bool(k["silu"]),
                channels_last=True,
                x_pitch=pitch,
            )

        return Task([v for v in (x, scale, shift) if v is not None], [result, stats], bind)

    def resampling(self, node: Node) -> Task:
        k, y = node.kwargs, node.outputs[0]
        x, up, down = k["x"], k["up"], k["down"]
        f = k["f"].detach().to(torch.float32).contiguous()
        self.program.kept.append(f)

        def bind(view: Callable[[Value], torch.Tensor]) -> Step:
            return bind_upfirdn(view(y), view(x), f, max(up, down), up > 1, k["padding"])

        return Task([x], [y], bind)

    def attention(self, node: Node) -> Task:
        """Of q, k and v, each of all heads and apart, as `rewritten` leaves them."""
        qkv, heads, a = node.kwargs["qkv"], node.kwargs["num_heads"], node.outputs[0]
        n, channels, h, w = a.shape
        head = channels // heads

        def bind(view: Callable[[Value], torch.Tensor]) -> Step:
            (to, to_pitch), (source, pitch) = native.window(view(a)), native.window(view(qkv))
            apart = node.kwargs.get("apart", False)
            return native.bind(
                "attention_fwd_cpu",
                qkv=source,
                a=to,
                n=n,
                heads=heads,
                channels=head,
                pixels=h * w,
                qkv_image=h * w * pitch,
                qkv_head=head if apart else 3 * head,
                qkv_which=channels if apart else 1,
                qkv_channel=1 if apart else 3,
                qkv_pixel=pitch,
                a_image=h * w * to_pitch,
                a_head=head,
                a_channel=1,
                a_pixel=to_pitch,
            )

        return Task([qkv], [a], bind)


def is_small(graph: Graph) -> bool:
    """Whether the caches hold the network's weights from one call to the next."""
    weights = [t for node in graph.nodes for t in node.kwargs.values() if isinstance(t, torch.Tensor)]
    return 4 * sum(t.numel() for t in weights) <= SMALL_NETWORK


def add(a: torch.Tensor, b: torch.Tensor, total: torch.Tensor | None, threads: int) -> None:
    torch.add(a, b, out=total)


def in_turn(steps: list[Step], threads: int) -> None:
    for step in steps:
        step(threads)


def is_concatenation(node: Node) -> bool:
    """Images joined along their channels."""
    if node.function is not torch.cat or len(node.outputs[0].shape) != 4:
        return False
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return dim == 1 and all(isinstance(part, Value) for part in node.args[0])


def writes_anywhere(node: Node) -> bool:
    """Whether the node's result may lie inside a wider image."""
    return node.kind == "conv2d" or (node.kind == "torch" and not is_concatenation(node))
