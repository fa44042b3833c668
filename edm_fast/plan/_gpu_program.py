"""Programs on a GPU: the chosen implementations one after the other, replayed as CUDA graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from edm_fast.plan import _capture
from edm_fast.plan._capture import Captured, StepGraph
from edm_fast.plan._graph import AnyNode, Value, map_tensors, map_values
from edm_fast.plan._implementations import takes_images
from edm_fast.plan._select import Candidate
from edm_fast.plan._weights import Weights


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What a precision means on a GPU."""

    dtype: torch.dtype
    tf32: bool = False
    exact: bool = False

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Images in the dtype, channels last; vectors in float32, or in the dtype where they were cast for images."""
        if tensor.ndim != 4:
            return tensor if tensor.dtype == self.dtype else tensor.to(torch.float32)
        tensor = tensor.to(self.dtype)
        return tensor if self.exact else tensor.contiguous(memory_format=torch.channels_last)

    def switches(self) -> contextlib.AbstractContextManager[None]:
        """What cuDNN and cuBLAS may do in a program of this precision; as the caller has it where bits must be his."""
        return tensor_float(self.tf32, None if self.exact else not torch.backends.cudnn.deterministic)


_switching = threading.RLock()


@contextlib.contextmanager
def tensor_float(allowed: bool, benchmark: bool | None = None) -> Iterator[None]:
    """TF32 in products and convolutions or not, and whether cuDNN times its algorithms (None: as it is).

    A process has one such switch: one thread at a time is in here.
    """
    cudnn: Any = torch.backends.cudnn
    switches = [(torch.backends.cuda.matmul, "allow_tf32", allowed), (cudnn, "allow_tf32", allowed)]
    switches += [(cudnn, "benchmark", benchmark)] if benchmark is not None else []
    with _switching:
        saved = [getattr(where, name) for where, name, _ in switches]
        try:
            for where, name, value in switches:
                setattr(where, name, value)
            yield
        finally:
            for (where, name, _), value in zip(switches, saved, strict=True):
                setattr(where, name, value)


@dataclasses.dataclass(eq=False)
class ChosenCall:
    """A node on the implementation chosen for it."""

    node: AnyNode
    candidate: Candidate
    image: Value | None  # whose statistics it may need
    dead: Sequence[Value]  # after it: their memory serves again


class Values:
    """The tensors of one evaluation, from the nodes that make them to the last that read them."""

    def __init__(self, inputs: Mapping[Value, torch.Tensor], numerics: Numerics) -> None:
        self.tensors, self.numerics = dict(inputs), numerics
        self.statistics: dict[Value | None, torch.Tensor] = {}  # of images, where they were left

    def args(self, node: AnyNode) -> Any:
        args = map_values(self.tensors.__getitem__, node.args)
        if self.numerics.exact or not takes_images(node):
            return args
        return map_tensors(lambda tensor: tensor.to(self.numerics.dtype), args)

    def run(self, step: ChosenCall, args: Any) -> None:
        """Run a step and drop what is dead after it."""
        needed = {"stats": self.statistics[step.image]} if step.candidate.needs_statistics else {}
        result = step.candidate.implementation(args, **needed)
        if step.candidate.leaves_statistics:
            result, self.statistics[step.node.output] = result
        for value, tensor in zip(step.node.outputs, [result] if isinstance(result, torch.Tensor) else result):
            self.tensors[value] = self.numerics.cast(tensor)
        for value in step.dead:
            del self.tensors[value]


class GpuProgram:
    """A network at one set of input shapes. Not for two threads at once: its buffers are its own."""

    def __init__(
        self,
        steps: Sequence[ChosenCall],
        inputs: Mapping[Value, torch.Tensor],
        output: Value,
        numerics: Numerics,
        weights: Weights,
        calls: Counter[str],
    ) -> None:
        self.steps, self.buffers, self.output, self.numerics = steps, inputs, output, numerics
        self.weights, self.calls = weights, calls
        self.inputs = {value.name: tensor for value, tensor in inputs.items()}
        self.device = next(iter(inputs.values())).device
        self.graph: Captured | None = None
        self.running: ChosenCall | None = None  # while the program is evaluated
        self.step_graphs: OrderedDict[Hashable, StepGraph] = OrderedDict()
        self.done: torch.cuda.Event | None = None

    def record(self) -> None:
        """Evaluations are one graph from now on. After an error `running` is the step that raised it, if one did."""
        self.graph = Captured(self._evaluate, self.device)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output, a fresh contiguous float32 tensor, on the current stream."""
        with self._in_order():
            return self._computed(inputs, self.graph or self._evaluate)

    def inline(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What `run` gives, call by call: inside of a graph that this program is recording."""
        return self._computed(inputs, self._evaluate)

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
                capture = functools.partial(Captured, device=self.device, beside=self.graph)
                with self.numerics.switches():  # before the lock of captures, as where programs are made
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

    def _computed(self, inputs: Mapping[str, torch.Tensor], evaluate: Callable[[], torch.Tensor]) -> torch.Tensor:
        for name, buffer in self.inputs.items():
            buffer.copy_(inputs[name])
        result = evaluate()
        return torch.empty(result.shape, dtype=torch.float32, device=self.device).copy_(result)

    def _evaluate(self) -> torch.Tensor:
        """The output for what lies in the buffers."""
        values = Values(self.buffers, self.numerics)
        with self.numerics.switches():
            for step in self.steps:
                self.running = step
                values.run(step, values.args(step.node))
            self.running = None
        return values.tensors[self.output]
