"""accelerate(): a network as an inference plan, with the same call and the same images, sooner.

A plan is made for each set of input shapes when it is first met: the network is traced, every layer gets the fastest
algorithm its precision allows, and the calls run on packed weights: on the CPU in one arena of memory, on a GPU as a
CUDA graph. Samplers have a whole step as one graph: see `PlannedUNet.replayer`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from edm_fast import backend, native
from edm_fast.errors import UserError
from edm_fast.networks._precond import PRECONDS, _Precond
from edm_fast.plan import _foreign, _gpu
from edm_fast.plan._algorithms import ALLOWED
from edm_fast.plan._batches import Inputs, by_name, in_parts, shape_fault, shapes_of, shapes_of_one, signature
from edm_fast.plan._capture import EvaluatedShapes
from edm_fast.plan._cpu import CpuPlanner, CpuProgram
from edm_fast.plan._errors import SIGMA, Allowance
from edm_fast.plan._gpu import GpuPlanner
from edm_fast.plan._gpu_program import GpuProgram
from edm_fast.plan._gradients import DifferentiableProgram
from edm_fast.plan._graph import Graph
from edm_fast.plan._own import is_foreign, own_network
from edm_fast.plan._pool import Pool, Shapes
from edm_fast.plan._table import dropped
from edm_fast.plan._torch_calls import as_ops
from edm_fast.plan._trace import trace

__all__ = ["accelerate"]

NOTHING = contextlib.nullcontext()
PRECISIONS = {"cpu": tuple(ALLOWED), "cuda": tuple(_gpu.PRECISIONS)}
Program = CpuProgram | GpuProgram

Run = Callable[[Inputs], torch.Tensor]  # evaluates the raw network
StepFunction = Callable[..., Sequence[torch.Tensor]]  # a sampling step: a function of a denoiser, numbers and tensors


class HiddenError(UserError, AttributeError):
    """A layer of an accelerated network was asked for; an AttributeError too, as the probes of torch expect."""


def accelerate(
    net: Any,
    precision: str = "fp32",
    cuda_graph: bool = True,
    packed_limit: float | None = None,
    max_error: float | None = None,
) -> Any:
    """A copy of `net` that evaluates faster: same class, attributes and call, weights as they are now and constant.

    precision, on the CPU: "exact" keeps every layer's rounding error within twice the reference's; "fp32" may spend
    more of float32's digits on speed; "bf16" has products of 16 bits. On a GPU: "exact" runs the reference's operations
    in its order and layout; "fp32", "tf32", "bf16" and "fp16" run images in that type, channels last, and replay a CUDA
    graph unless `cuda_graph` is false, and one per step in the samplers of this package. cuDNN times its algorithms in
    each thread that makes a plan: the last bits of two may differ, unless torch.backends.cudnn.deterministic is set.
    `net` is a network of this package or an instance of the published classes, in evaluation mode; on the CPU also any
    torch module that is called as forward(x, t) or forward(x, t, labels), whose layers of torch become ops of this
    package where they can (see docs/accelerate.md).

    Gradients with respect to images, levels and labels are those of autograd: where one of them requires gradients, the
    evaluation and its backward run on the same kernels, at least twice as long each as an evaluation alone, and hold
    what the backward reads. There "bf16" has products of 32 bits, and on a GPU TF32 is as `torch.backends` says. With
    torch.func, forward mode, torch.export and whatever else watches operations, the network itself is evaluated.

    packed_limit, on the CPU: the most memory for packed weights of convolutions, in that of their own; those beyond it
    transform theirs at each call. None: 1 for networks of more than 8 MB of weights; for smaller ones math.inf, no
    limit. Without a limit large networks evaluate a single image sooner; batches gain little.

    max_error, on the CPU: the most that the raw network F may err as a whole, ||F - F64|| / ||F64||; of the algorithms
    that `precision` allows, layers get those of the least time. The first call with a new shape measures errors on two
    images of noise at sigma 0.5 (t = 1 for other modules), and `explain()` reports what the plan reaches there; other
    images differ by some percent. UserError then if it cannot be reached. Evaluations with gradients are "exact".

    What was done to `net` is followed: subclasses, replaced methods, adapters, parametrizations, and hooks that change
    what layers compute. Python code inside the raw network runs when a shape is first met, on tensors without numbers,
    and no more: hooks there that only look on or read numbers raise UserError, and random numbers stay as first drawn.
    Hooks of the copy itself run at every call. Weights, too, are read when a shape is first met; make another copy
    after changing them. Threads may use the copy at the same time, each on a stream of its own; while graphs are
    recorded, in the first two calls of a kind, none of them may wait for the whole device (torch.cuda.synchronize).
    """
    foreign = is_foreign(net)
    if foreign and (fault := _foreign.fault(net)) is not None:
        raise UserError(f"accelerate() got a network it cannot take: {fault}")
    net = net if foreign else own_network(net)
    model = net if foreign else net.raw.reference[0] if isinstance(net.raw, PlannedUNet) else net.raw
    device = next(model.parameters()).device
    if (found := _fault(device, precision, packed_limit, max_error)) is not None:
        raise UserError(found)
    if net.training or model.training:
        raise UserError("the network is in training mode; expected net.eval() before accelerate()")
    allowance = None
    if max_error is not None:
        level = _foreign.LEVEL if foreign else float(net.coefficients(torch.tensor(SIGMA)).c_noise)
        allowance = Allowance(max_error, level)
    if foreign:
        raw = _foreign.RawForeign(net)
        return _foreign.accelerated(net, PlannedUNet(raw, precision, True, packed_limit, allowance))
    fast = with_model(net, PlannedUNet(model, precision, cuda_graph, packed_limit, allowance))
    if device.type == "cuda":
        fast.use_fp16 = False  # the plan casts, to the type of its precision
    return fast


def _fault(device: torch.device, precision: Any, packed_limit: Any, max_error: Any) -> str | None:
    """Why a network on this device cannot be accelerated like this, or None."""
    if device.type not in PRECISIONS:
        return f"accelerate() takes networks on the CPU or a CUDA device; this one is on {device}"
    if precision not in PRECISIONS[device.type]:
        expected = ", ".join(PRECISIONS[device.type])
        return f"precision {precision!r} does not run on {device.type}; expected one of {expected}"
    if packed_limit is not None and not (isinstance(packed_limit, (int, float)) and packed_limit >= 0):
        return f"packed_limit is {packed_limit!r}; expected a number of at least 0, or None"
    if max_error is not None and not (isinstance(max_error, (int, float)) and 0 < max_error < math.inf):
        return f"max_error is {max_error!r}; expected a number above 0, such as 2e-6, or None"
    if max_error is not None and device.type != "cpu":
        return f"max_error is for networks on the CPU; this one is on {device}, expected a precision alone"
    reason = native.cpu_reason() if device.type == "cpu" else None
    return None if reason is None else f"accelerate() is not possible here: {reason}"


def unaccelerated(device: torch.device) -> str | None:
    """Why commands run networks on this device as they are; None where `accelerate` takes them."""
    if set(backend.requested().values()) != {"auto"}:
        return "a backend was asked for by name (EDM_FAST_BACKEND), and a network has one or the other"
    return native.cpu_reason() if device.type == "cpu" else None


def planner(device: torch.device, how: tuple[Any, ...]) -> Any:
    """What makes a program of a traced network on this device; how: see `PlannedUNet`."""
    precision, cuda_graph, packed_limit, allowance, choose = how
    if device.type == "cpu":
        return CpuPlanner(precision, packed_limit, allowance, choose)
    return GpuPlanner(precision, device, cuda_graph, choose)


def _hooks_of_all() -> Iterator[Any]:
    """torch's hooks on all modules."""
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        yield getattr(torch.nn.modules.module, name, None)


def _untraced(method: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.compiler.disable, without its long import of torch's compiler where nothing is compiled."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = torch.compiler.disable(method) if torch.compiler.is_compiling() else method
        return run(*args, **kwargs)

    return call


def with_model(net: _Precond, model: torch.nn.Module) -> _Precond:
    """A copy of `net` around another raw network. What happens to the copy does not happen to `net`."""
    fast = copy.copy(net)
    fast.__dict__["_buffers"] = dict(net._buffers)
    fast.__dict__["_modules"] = {**net._modules, net.raw_name: model}
    return fast


def needs_gradients(tensors: Collection[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class Evaluation(torch.nn.Module):
    """Stands in for the raw network of a copy of an accelerated network: evaluate(run, *inputs)."""

    def __init__(self, evaluate: Callable[..., torch.Tensor], run: Run) -> None:
        super().__init__()
        self.evaluate, self.run = evaluate, run

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.evaluate(self.run, *args, **kwargs)


class PlannedUNet(torch.nn.Module):
    """Stands in for a raw network F(x; c_noise, labels). Threads may call it at the same time.

    Its parameters and state_dict are those of the network. Nothing changes them through it: the packed copies would not
    follow. A pickle or deep copy holds the network and makes its plans anew.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        precision: str,
        cuda_graph: bool = True,
        packed_limit: float | None = None,
        allowance: Allowance | None = None,
        choose: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.reference = [model]  # in a list, so that torch does not count it as a part to convert, load or train
        self.device = next(model.parameters()).device
        self.how = precision, cuda_graph, packed_limit, allowance, choose
        self.planner, self.allowance = planner(self.device, self.how), allowance
        self.pool: Pool[Program] = Pool()
        self.differentiable: Pool[DifferentiableProgram] = Pool()
        self.made: WeakValueDictionary[Hashable, torch.Tensor] = WeakValueDictionary()  # of weights, by traces
        self.graphs: dict[Shapes, Graph] = {}  # traced, and not yet made programs of
        self.most_images: dict[Shapes, int] = {}  # evaluated at once, by the shapes of one
        self.evaluated_shapes = EvaluatedShapes()
        self.reasons: dict[str, dict[str, str]] = {}  # by op: why each of its implementations is passed over
        self.by_name = by_name(signature(model))
        self.training = False

    @_untraced
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.watched(tensors := [*backend.tensors((args, kwargs))]):
            if (fault := self.fault(tensors)) is not None:
                raise UserError(fault)
            return self.reference[0](*args, **kwargs)
        return self.evaluate(self.run, *args, **kwargs)

    def evaluate(self, run: Run, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output, by `run`, which takes as many images as a program does."""
        arguments = self.by_name(args, kwargs)
        inputs = {name: value for name, value in arguments.items() if value is not None}
        fault = shape_fault(inputs) or self.fault(inputs.values())
        if fault is not None:
            raise UserError(fault)
        differentiable, kind = needs_gradients(inputs.values()), self.device.type
        autocast = torch.is_autocast_enabled(kind)  # entering the context takes longer than asking
        with torch.set_grad_enabled(differentiable), torch.autocast(kind, enabled=False) if autocast else NOTHING:
            if len(inputs["x"]) == 0:
                return self.reference[0](**arguments)
            return in_parts(self.run_differentiable if differentiable else run, inputs, self.images_at_once(inputs))

    def fault(self, tensors: Collection[torch.Tensor]) -> str | None:
        """Why these are no inputs, or None."""
        if any(t.device != self.device for t in tensors):
            return f"a network accelerated for {self.device} got tensors on another device"
        if self.reference[0].training:
            return "the network was put in training mode after accelerate(); expected net.eval()"
        return None

    def watched(self, tensors: Collection[torch.Tensor]) -> bool:
        """Whether operations are followed by more than autograd, such as a trace: a plan would show it none."""
        return backend.transformed(*tensors) or backend.traced(*tensors)

    def images_at_once(self, inputs: Inputs) -> int:
        """How many images of this shape a program takes."""
        shapes = shapes_of_one(inputs)
        if shapes not in self.most_images:
            graph = self.graph(shapes_of(inputs))
            self.most_images[shapes] = self.planner.images_at_once(graph)
            if len(inputs["x"]) <= self.most_images[shapes]:
                self.graphs[shapes_of(inputs)] = graph
        return self.most_images[shapes]

    def graph(self, shapes: Shapes) -> Graph:
        """What the network computes of inputs of these shapes."""
        if (found := self.graphs.pop(shapes, None)) is not None:
            return found
        graph = trace(self.reference[0], dict(shapes), self.made)
        return as_ops(graph) if isinstance(self.reference[0], _foreign.RawForeign) else graph

    def run(self, inputs: Inputs) -> torch.Tensor:
        """The output for the inputs of one program."""
        with self.pool.program(shapes_of(inputs), self.program) as program:
            result = program.run(inputs)
        self.note(program)
        return result

    def run_differentiable(self, inputs: Inputs) -> torch.Tensor:
        """The same, with gradients."""
        with self.differentiable.program(shapes_of(inputs), lambda s: self.planner.differentiable(self.graph(s))) as p:
            return p.run(inputs)

    def program(self, shapes: Shapes) -> Program:
        """A new program for inputs of these shapes."""
        # in inference mode the program could be used there alone; autocast would change what is timed and recorded
        with torch.inference_mode(False), torch.autocast(self.device.type, enabled=False):
            program = self.planner(self.graph(shapes), self.graph)
        for name in program.calls:
            reasons = dict.fromkeys(backend.ops()[name].implementations, "the network runs as one accelerated plan")
            self.reasons[name] = {**reasons, **dropped(name)}
        return program

    def note(self, program: Program) -> None:
        """For `explain`: the ops of one evaluation have run, in a plan."""
        way = f"accelerated {self.how[0]}"
        if self.allowance is not None and isinstance(program, CpuProgram):
            way += f", error {program.error:.1e} of {self.allowance.max_error:g} allowed"
        for name, calls in program.calls.items():
            backend.ops()[name].note(way, self.reasons[name], calls)

    def replayer(
        self, net: Any
    ) -> Callable[[Hashable, StepFunction, Sequence[float], Sequence[Any]], Sequence[Any]] | None:
        """What a sampler gives its steps to: replay(structure, step, row, tensors) is step(denoise, row, *tensors).

        net: the accelerated network with this model; denoise(x, sigma, labels) is the network, to the bit. All that the
        step does is determined by `structure`, which is hashable, the numbers of `row`, and the tensors or Nones; it
        waits for no device and draws no noise. From the second time on it runs as one CUDA graph, and the row is a
        float64 tensor on the device. None: there are no graphs here, or the network has hooks or a forward of its own,
        which a graph would pass by.
        """
        if not self.planner.captured or type(net) not in PRECONDS.values():
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in (net, self)) or any(_hooks_of_all()):
            return None
        if any(callable(value) for value in vars(net).values()) or "forward" in vars(self):
            return None
        constants = {name: value for name, value in vars(net).items() if isinstance(value, (bool, int, float, str))}
        buffers = [(name, buffer.data_ptr()) for name, buffer in net._buffers.items() if buffer is not None]
        return functools.partial(self.replay, net, (type(net), *sorted(constants.items()), *buffers))

    @_untraced
    def replay(
        self,
        net: _Precond,
        formulas: Hashable,
        structure: Hashable,
        step: StepFunction,
        row: Sequence[float],
        tensors: Sequence[torch.Tensor | None],
    ) -> Sequence[torch.Tensor]:
        """See `replayer`; `formulas` is what those of `net` depend on besides the model."""

        def denoiser(run: Run) -> _Precond:
            return with_model(net, Evaluation(self.evaluate, run))

        layouts = [None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors]
        kind = formulas, structure, tuple(layouts), tuple(sorted(backend.requested().items()))
        shapes = self.evaluated_shapes.get(kind)
        found = [t for t in tensors if t is not None]
        if self.watched(found):
            return step(net, row, *tensors)
        if shapes is None or self.fault(found) or needs_gradients(found):
            evaluated: set[Shapes] = set()

            def run_and_note(inputs: Inputs) -> torch.Tensor:
                evaluated.add(shapes_of(inputs))
                return self.run(inputs)

            result = step(denoiser(run_and_note), row, *tensors)
            if len(evaluated) == 1:
                self.evaluated_shapes.add(kind, evaluated.pop())
            return result
        # as for programs: not for inference mode alone
        with self.pool.program(shapes, self.program) as program, torch.no_grad(), torch.inference_mode(False):
            assert isinstance(program, GpuProgram)
            inline = program.inline
            result = program.replay_step(kind, lambda row, *t: step(denoiser(inline), row, *t), row, tensors)
        self.note(program)
        return result

    def __getattr__(self, name: str) -> Any:
        """Layers are not reached through the plan: what was done to them there would be lost without a word."""
        (model,) = self.__dict__.get("reference", [None])
        if model is not None and any(name in found for found in (model._modules, model._parameters, model._buffers)):
            raise HiddenError(f"an accelerated network has no {name} of its own; expected the network it was made of")
        return super().__getattr__(name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        """Those of the network, so that parameters() and buffers() find its tensors."""
        return self.reference[0].named_modules(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.reference[0].state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise UserError(
            "an accelerated network takes no other weights; expected accelerate() of a network that has them"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PlannedUNet:
        """net.to(...) and its like: what is as it should be may stay so."""
        probe = fn(torch.empty(0, dtype=torch.float32, device=self.device))
        if probe.dtype != torch.float32 or probe.device != self.device:
            where = "the CPU" if self.device.type == "cpu" else str(self.device)
            raise UserError(
                f"an accelerated network stays in float32 on {where}, not {probe.dtype} on {probe.device}; expected "
                "accelerate() of a network that is there"
            )
        return self

    def train(self, mode: bool = True) -> PlannedUNet:
        if mode:
            raise UserError("an accelerated network cannot be trained; expected the network itself")
        return self

    def __reduce__(self) -> Any:
        return PlannedUNet, (self.reference[0], *self.how)
