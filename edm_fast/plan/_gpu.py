"""Inference plans on the GPU: the calls of a traced network one after the other, replayed as a CUDA graph.

Images lie channels last in the dtype of the precision, vectors stay in float32. Weights are cast and laid out once.
Each call has one or more ways to run, such as cuDNN and the fused kernels (`_ways`); `_tune` and `_choice` choose.
"precision exact" keeps to the operations, order and layout of the reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from edm_fast.plan import _capture, _ways
from edm_fast.plan._capture import Captured, StepGraph
from edm_fast.plan._choice import Step, cheapest
from edm_fast.plan._rewrite import ask_statistics, join_embeddings, join_pairs, norm_of, rewritten
from edm_fast.plan._trace import MANY, Graph, Node, Value, map_values, op_calls
from edm_fast.plan._tune import Measure, MeasuredWays, time_ways
from edm_fast.plan._ways import is_op
from edm_fast.plan._weights import Made, Weights


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


_switching = threading.RLock()


@contextlib.contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """TF32 in products and convolutions or not. A process has one such switch: one thread at a time is in here."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    with _switching:
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


class Planner:
    """Makes the programs of one network on one device, which share their weights."""

    def __init__(self, precision: str, device: torch.device, cuda_graph: bool, measure: Measure | None = None) -> None:
        self.numerics, self.device = PRECISIONS[precision], device
        self.captured = cuda_graph and captures(device)
        self.measure = measure or MeasuredWays(device)
        self.made: WeakValueDictionary[Any, Made] = WeakValueDictionary()

    def __call__(self, graph: Graph) -> Program:
        weights = Weights(self.numerics.dtype, self.made)
        return Program(graph, self.measure, weights, self.numerics, self.device, self.captured)

    def images_at_once(self, graph_of_one: Callable[[], Graph]) -> int:
        """All of them: a GPU is not full with a few."""
        return MANY


class Program:
    """A network at one set of input shapes. Not for two threads at once: its buffers are its own."""

    def __init__(
        self, graph: Graph, measure: Measure, weights: Weights, numerics: Numerics, device: torch.device, captured: bool
    ) -> None:
        self.graph, self.numerics, self.device, self.weights = graph, numerics, device, weights
        nodes, self.calls = graph.nodes, op_calls(graph)
        if not numerics.exact:
            nodes = join_pairs(join_embeddings(rewritten(graph)), graph.output)
            nodes = [self._prepared(node) for node in nodes]
        asked = {} if numerics.exact else ask_statistics(nodes)
        self.steps = [Step(node, norm_of(node, asked), asked.get(node.outputs[0])) for node in nodes]
        self._bury()
        self.inputs: dict[str, torch.Tensor] = {}
        generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay what they would have been
        for name, value in graph.inputs.items():
            noise = torch.randn(value.shape, generator=generator, device=device)
            self.inputs[name] = self._laid_out(noise.to(self._dtype(value)))
        with tensor_float(numerics.tf32):
            self._evaluate(measure)
            cheapest(self.steps)
            self.graph_of_run = Captured(self._evaluate, device) if captured else None
        self.step_graphs: OrderedDict[Hashable, StepGraph] = OrderedDict()
        self.done: torch.cuda.Event | None = None

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, a fresh contiguous float32 tensor, on the current stream."""
        with self._in_order():
            return self._computed(inputs, self.graph_of_run or self._called)

    def inline(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What `run` gives, call by call: inside of a graph that this program is recording."""
        return self._computed(inputs, self._called)

    def replay_step(
        self,
        kind: Hashable,
        step: Callable[..., Sequence[torch.Tensor]],
        row: Sequence[float],
        tensors: Sequence[torch.Tensor | None],
    ) -> Sequence[torch.Tensor]:
        """step(row, *tensors), fresh tensors, by the graph of its kind, recorded if there is none.

        The graphs of a program take turns, so they share the memory of one. The step evaluates the network by `inline`.
        """
        with self._in_order():
            if kind not in self.step_graphs:
                capture = functools.partial(Captured, device=self.device, beside=self.graph_of_run)
                with tensor_float(self.numerics.tf32):  # before the lock of captures, as where programs are made
                    self.step_graphs[kind] = StepGraph(step, row, tensors, self.device, capture)
            self.step_graphs.move_to_end(kind)
            if len(self.step_graphs) > _capture.MAX_STEP_GRAPHS:
                self.finish()
                self.step_graphs.popitem(last=False)
            return self.step_graphs[kind](row, tensors)

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        """On the current stream, after the last call, which may have been on another one."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self.done is not None:
            self.done.wait(stream)
        try:
            yield
        finally:  # also after an error: what was launched before it still runs
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
        return dataclasses.replace(node, kwargs=_tensors(self.weights, node.kwargs)) if is_op(node) else node

    def _bury(self) -> None:
        """Find out after which step each value is dead, so that its memory serves again."""
        seen = {self.graph.output}
        for step in reversed(self.steps):
            values = dict.fromkeys([*step.node.inputs(), *step.node.outputs])
            step.dead = [value for value in values if value not in seen]
            seen.update(values)

    def _evaluate(self, measure: Measure | None = None) -> torch.Tensor:
        """The output for what lies in the input buffers; with `measure`, ways are found and timed as steps are met."""
        held = {value: self.inputs[name] for name, value in self.graph.inputs.items()}
        stats: dict[Value | None, torch.Tensor] = {}  # of images, where the step that made them left any
        for step in self.steps:
            args, kwargs = map_values(held.__getitem__, (step.node.args, step.node.kwargs))
            if is_op(step.node) and not self.numerics.exact:  # an op takes its vectors as its images
                kwargs = _tensors(lambda t: t.to(self.numerics.dtype), kwargs)
            given = {"stats": stats[step.image]} if step.image in stats else {}
            if measure is not None:
                self._measure(step, args, kwargs, given, measure)
            result = step.way.run(*args, **kwargs, **(given if step.way.takes else {}))
            if step.way.makes:
                result, stats[step.output] = result
            elif measure is not None and step.asked and any(way.makes for way in step.ways.values()):
                stats[step.output] = _statistics(result, *step.asked)  # for the readers' ways that take them
            for value, found in zip(step.node.outputs, [result] if isinstance(result, torch.Tensor) else result):
                held[value] = self._laid_out(found.to(self._dtype(value)))
            for value in step.dead:
                del held[value]
        return held[self.graph.output]

    def _measure(self, step: Step, args: Any, kwargs: Any, given: dict[str, torch.Tensor], measure: Measure) -> None:
        """Find the step's ways and their seconds; it runs the fastest until all steps have theirs."""
        if self.numerics.exact:
            step.ways = _ways.as_written(step.node)
        else:
            step.ways = _ways.ways(step.node, kwargs, self.weights, step.asked, bool(given))
        step.key = f"{self.numerics.dtype} {self.numerics.tf32} {_described(step.node.kind, kwargs)}"
        calls = {
            name: functools.partial(way.run, *args, **kwargs, **(given if way.takes else {}))
            for name, way in step.ways.items()
        }
        time_ways(step, calls, measure)


def _tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The same dicts with function(tensor) in place of every tensor."""
    if isinstance(tree, dict):
        return {key: _tensors(function, value) for key, value in tree.items()}
    return function(tree) if isinstance(tree, torch.Tensor) else tree


def _statistics(image: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """(2, N, groups) float32: mean and 1 / sqrt(var + eps)."""
    var, mean = torch.var_mean(image.float().unflatten(1, (groups, -1)), (2, 3, 4), correction=0)
    return torch.stack((mean, (var + eps).rsqrt()))


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
