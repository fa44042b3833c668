"""Inference plans on the GPU: the calls of a traced network one after the other, replayed as a CUDA graph.

Images lie channels last in the dtype of the precision, vectors stay in float32. Weights are cast and laid out once.
Each call has one or more ways to run, such as cuDNN and the fused kernels, and takes the fastest by measurement.
"precision exact" keeps to the operations, order and layout of the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F

from edm_fast import backend
from edm_fast.plan import _fused, _table
from edm_fast.plan._graph import WARMUPS, Captured, Replay
from edm_fast.plan._rewrite import join_embeddings, join_pairs, rewritten
from edm_fast.plan._trace import MANY, Graph, Node, Value, map_values
from edm_fast.plan._weights import Made, Weights

ROUNDS = 9
MAX_REPLAYS = 16  # kept by one program: a sampler needs two to four, however many its steps are
VERSION = 1  # of the kernels: another one makes old measurements void

Way = Callable[..., Any]  # takes the node's arguments with tensors in place of values
Choose = Callable[[str, Mapping[str, Callable[[], Any]]], str]


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What a precision means on a GPU."""

    dtype: torch.dtype
    tf32: bool = False
    exact: bool = False


PRECISIONS = {
    "exact": Numerics(torch.float32, exact=True),
    "fp32": Numerics(torch.float32),
    "tf32": Numerics(torch.float32, tf32=True),
    "bf16": Numerics(torch.bfloat16),
    "fp16": Numerics(torch.float16),
}


@contextlib.contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """TF32 in products and convolutions or not; a process has one such switch, so no other thread should turn it."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    saved = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = allowed
        yield
    finally:
        for flag, value in zip(flags, saved, strict=True):
            flag.allow_tf32 = value


def captures(device: torch.device) -> bool:
    """Whether there are graphs on this device."""
    return device.type == "cuda"


@dataclasses.dataclass
class Step:
    """A node with the way it runs, and the values nobody reads after it."""

    node: Node
    way: Way | None = None
    dead: list[Value] = dataclasses.field(default_factory=list)


class Planner:
    """Makes the programs of one network on one device, which share their weights."""

    def __init__(self, precision: str, device: torch.device, cuda_graph: bool, choose: Choose | None = None) -> None:
        self.numerics, self.device = PRECISIONS[precision], device
        self.captured = cuda_graph and captures(device)
        self.choose = choose or Measured(device)
        self.made: WeakValueDictionary[Any, Made] = WeakValueDictionary()

    def __call__(self, graph: Graph) -> Program:
        weights = Weights(self.numerics.dtype, self.made)
        return Program(graph, self.choose, weights, self.numerics, self.device, self.captured)

    def images_at_once(self, graph_of_one: Callable[[], Graph]) -> int:
        """All of them: a GPU is not full with a few."""
        return MANY


class Program:
    """A network at one set of input shapes. Not for two threads at once: its buffers are its own."""

    def __init__(
        self, graph: Graph, choose: Choose, weights: Weights, numerics: Numerics, device: torch.device, captured: bool
    ) -> None:
        self.graph, self.numerics, self.device, self.weights = graph, numerics, device, weights
        nodes = graph.nodes
        if not numerics.exact:
            nodes = join_pairs(join_embeddings(rewritten(graph)), graph.output)
            nodes = [self._prepared(node) for node in nodes]
        self.steps = [Step(node) for node in nodes]
        self._bury()
        self.chosen: dict[str, str] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay what they would have been
        for name, value in graph.inputs.items():
            noise = torch.randn(value.shape, generator=generator, device=device)
            self.inputs[name] = self._laid_out(noise.to(self._dtype(value)))
        with tensor_float(numerics.tf32):
            self._evaluate(choose)
            self.replay = Captured(self._evaluate, device) if captured else None
        self.replays: OrderedDict[Any, Replay] = OrderedDict()
        self.done: torch.cuda.Event | None = None

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, a fresh contiguous float32 tensor, on the current stream."""
        with self._in_order():
            return self._computed(inputs, self.replay or self._called)

    def inline(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What `run` gives, call by call: inside of a graph that this program is recording."""
        return self._computed(inputs, self._called)

    def replayed(
        self,
        key: Any,
        function: Callable[..., Sequence[torch.Tensor]],
        numbers: Sequence[float],
        tensors: Sequence[torch.Tensor | None],
    ) -> tuple[torch.Tensor, ...]:
        """function(numbers, *tensors), fresh tensors, by the graph of this key, recorded if there is none.

        The graphs of a program take turns, so they share the memory of one. Inside, the function's evaluations of the
        network must come to `inline`.
        """
        with self._in_order():
            if key not in self.replays:
                capture = functools.partial(Captured, device=self.device, beside=self.replay)
                self.replays[key] = Replay(function, numbers, tensors, self.device, capture)
            self.replays.move_to_end(key)
            if len(self.replays) > MAX_REPLAYS:
                self.finish()
                self.replays.popitem(last=False)
            return self.replays[key](numbers, tensors)

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        """On the current stream, after the last call, which may have been on another one."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self.done is not None:
            self.done.wait(stream)
        yield
        self.done = torch.cuda.Event()
        self.done.record(stream)

    def finish(self) -> None:
        """Wait for the last call, before memory of this program is given away: other streams would not wait for it."""
        if self.done is not None:
            self.done.synchronize()

    def _called(self) -> torch.Tensor:
        with tensor_float(self.numerics.tf32):
            return self._evaluate()

    def _computed(self, inputs: Mapping[str, torch.Tensor], evaluate: Callable[[], torch.Tensor]) -> torch.Tensor:
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        result = evaluate()
        return torch.empty(result.shape, dtype=torch.float32, device=self.device).copy_(result)

    def _dtype(self, value: Value) -> torch.dtype:
        return self.numerics.dtype if len(value.shape) == 4 else torch.float32

    def _laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 4 or self.numerics.exact:
            return tensor
        return tensor.contiguous(memory_format=torch.channels_last)

    def _prepared(self, node: Node) -> Node:
        """The node with the network's own tensors as its kernels read them."""
        return dataclasses.replace(node, kwargs=_tensors(self.weights, node.kwargs)) if _is_op(node) else node

    def _bury(self) -> None:
        """Find out after which step each value is dead, so that its memory serves again."""
        seen = {self.graph.output}
        for step in reversed(self.steps):
            values = dict.fromkeys([*step.node.inputs(), *step.node.outputs])
            step.dead = [value for value in values if value not in seen]
            seen.update(values)

    def _evaluate(self, choose: Choose | None = None) -> torch.Tensor:
        """The output for what lies in the input buffers; with `choose`, each step's way is chosen as it is reached."""
        held = {value: self.inputs[name] for name, value in self.graph.inputs.items()}
        for step in self.steps:
            args, kwargs = map_values(held.__getitem__, (step.node.args, step.node.kwargs))
            if _is_op(step.node) and not self.numerics.exact:  # an op takes its vectors as its images
                kwargs = _tensors(lambda t: t.to(self.numerics.dtype), kwargs)
            if choose is not None:
                step.way = self._choose(step.node, args, kwargs, choose)
            assert step.way is not None
            result = step.way(*args, **kwargs)
            for value, found in zip(step.node.outputs, [result] if isinstance(result, torch.Tensor) else result):
                held[value] = self._laid_out(found.to(self._dtype(value)))
            for value in step.dead:
                del held[value]
        return held[self.graph.output]

    def _choose(self, node: Node, args: Any, kwargs: Any, choose: Choose) -> Way:
        ways = self._ways(node, kwargs)
        if len(ways) == 1:
            return next(iter(ways.values()))
        key = f"{self.numerics.dtype} {self.numerics.tf32} {_described(node.kind, kwargs)}"
        name = choose(key, {name: functools.partial(way, *args, **kwargs) for name, way in ways.items()})
        self.chosen[key] = name
        return ways[name]

    def _ways(self, node: Node, kwargs: dict[str, Any]) -> dict[str, Way]:
        """How a node can run, by name."""
        if node.kind == "linear":
            return {"torch": _linear}
        if not _is_op(node):
            return {"torch": node.function}
        if node.kind != "pair":
            return self._ways_of_op(backend.ops()[node.kind], kwargs)
        first, second = (backend.ops()[op.name] for op in node.function)  # type: ignore[attr-defined]
        x = kwargs["first"]["x"]
        before = self._ways_of_op(first, kwargs["first"])
        after = self._ways_of_op(second, {**kwargs["second"], "x": x})  # reasons ask for device and dtype
        ways: dict[str, Way] = {
            f"{a}+{b}": functools.partial(_in_turn, before[a], after[b]) for a in before for b in after
        }
        if "fused" in after:
            merged = _fused.upsampled if first.name == "upfirdn" else _fused.normalised
            if first.name != "upfirdn" or kwargs["second"]["weight"].shape[-1] == 3:
                ways["merged"] = merged(self.weights)
        return ways

    def _ways_of_op(self, op: backend.Op, kwargs: dict[str, Any]) -> dict[str, Way]:
        if self.numerics.exact:
            return {"reference": op.reference}
        first: dict[str, Way] = {"sdpa": _sdpa} if op.name == "attention" else {"reference": op.reference}
        if "apart" in kwargs:
            given = {name: value for name, value in kwargs.items() if name != "apart"}
            fits = "triton" in op.candidates and op.candidates["triton"].reason(**given) is None
            return {**first, "triton": _fused.attention} if fits else first
        able = {name: c.forward for name, c in op.candidates.items() if c.reason(**kwargs) is None}
        if op.name == "conv2d" and "triton" in able:
            del able["triton"]  # the same kernel, whose weights are packed beforehand
            able["fused"] = _fused.convolution(self.weights)
        return {**first, **able}


def _is_op(node: Node) -> bool:
    return node.kind == "pair" or node.kind in backend.ops()


def _tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The same dicts with function(tensor) in place of every tensor."""
    if isinstance(tree, dict):
        return {key: _tensors(function, value) for key, value in tree.items()}
    return function(tree) if isinstance(tree, torch.Tensor) else tree


def _in_turn(a: Way, b: Way, first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
    return b(x=a(**first), **second)


def _described(kind: str, kwargs: Mapping[str, Any]) -> str:
    """A call as text: shapes of tensors, other arguments as they are."""
    parts = []
    for name, value in kwargs.items():
        if isinstance(value, dict):
            parts.append(f"({_described(name, value)})")
        elif value is not None:
            shape = "x".join(map(str, value.shape)) if isinstance(value, torch.Tensor) else value
            parts.append(f"{name}={shape}")
    return " ".join([kind, *parts])


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _sdpa(qkv: torch.Tensor, num_heads: int, apart: bool = False) -> torch.Tensor:
    """Attention by torch's fused kernels; `apart`: channels in the order which, head, channel (see `separate_qkv`)."""
    n, channels, h, w = qkv.shape
    head = channels // (3 * num_heads)
    pixels = qkv.permute(0, 2, 3, 1).reshape(n, h * w, channels)
    if apart:
        q, k, v = pixels.reshape(n, h * w, 3, num_heads, head).permute(2, 0, 3, 1, 4)  # each (N, heads, HW, head)
    else:
        q, k, v = pixels.reshape(n, h * w, num_heads, head, 3).permute(4, 0, 2, 1, 3).contiguous()
    a = F.scaled_dot_product_attention(q, k, v)
    return a.transpose(1, 2).reshape(n, h, w, num_heads * head).permute(0, 3, 1, 2)


class Measured:
    """The fastest way by the GPU's clock, kept in a file per GPU and versions: a plan is the same in every run."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device, self.folder = device, folder

    def __call__(self, key: str, ways: Mapping[str, Callable[[], Any]]) -> str:
        keys = {f"{name} {key}": name for name in ways}

        def measured(missing: list[str]) -> dict[str, float]:
            return {key: _seconds(ways[keys[key]], self.device) for key in missing}

        seconds = _table.table(self.folder, self._name()).costs([*keys], measured)
        return keys[min(keys, key=lambda key: seconds[key])]

    def _name(self) -> str:
        chip = torch.cuda.get_device_name(self.device)
        return _table.file_name(f"gpu-{VERSION}-{chip}-torch{torch.__version__}-triton{_triton_version()}")


@functools.cache
def _triton_version() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("triton")
    return "none"


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a call on the GPU, its launch hidden behind the calls before it."""
    with torch.cuda.device(device):
        for _ in range(WARMUPS):
            function()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(ROUNDS + 1)]
        # the stream, not the device: another thread may be capturing, which such a wait would break
        torch.cuda.current_stream(device).synchronize()
        for mark in marks[:-1]:
            mark.record()
            function()
        marks[-1].record()
        marks[-1].synchronize()
        times = [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]
    return statistics.median(times)
