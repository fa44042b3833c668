"""accelerate(): a network as an inference plan, with the same call and the same images, sooner.

A plan is made for each set of input shapes when it is first met: the network is traced, every layer gets the fastest
algorithm its precision allows, and the calls run on packed weights: on the CPU in one arena of memory, on a GPU as a
CUDA graph. Samplers have a whole step as one graph: see `PlannedUNet.replayer`.
"""

from __future__ import annotations

import collections
import copy
import functools
import inspect
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from edm_fast import backend, native
from edm_fast.errors import UserError
from edm_fast.networks import SongUNet, build
from edm_fast.networks._precond import PRECONDS, UNETS, _Precond
from edm_fast.plan import _cpu, _gpu
from edm_fast.plan._algorithms import ALLOWED
from edm_fast.plan._table import dropped
from edm_fast.plan._trace import trace

__all__ = ["accelerate"]

PRECISIONS = {"cpu": tuple(ALLOWED), "cuda": tuple(_gpu.PRECISIONS)}
Program = _cpu.Program | _gpu.Program
MAX_PROGRAMS = 4  # kept by one network, for as many input shapes or threads

DIMENSIONS = {"x": 4, "noise_labels": 1, "class_labels": 2, "augment_labels": 2}  # of a raw network's inputs
INSIDE = {"_orig_mod": "torch.compile", "module": "a parallel or averaged model"}  # where wrappers keep the network

Evaluate = Callable[..., Sequence[torch.Tensor]]  # a function of numbers and tensors that evaluates the network


class HiddenError(UserError, AttributeError):
    """A layer of an accelerated network was asked for; an AttributeError too, as the probes of torch expect."""


def accelerate(net: Any, precision: str = "fp32", cuda_graph: bool = True, packed_limit: float | None = None) -> Any:
    """A copy of `net` that evaluates faster: same class, attributes and call, no gradients, weights as they are now.

    precision, on the CPU: "exact" keeps every layer's rounding error within twice the reference's; "fp32" may spend
    more of float32's digits on speed; "bf16" has products of 16 bits. On a GPU: "exact" runs the reference's operations
    in its order and layout; "fp32", "tf32", "bf16" and "fp16" run images in that type, channels last, and replay a CUDA
    graph unless `cuda_graph` is false; the samplers of this package then replay each of their steps as one. `net` is a
    network of this package or an instance of the published classes, in evaluation mode.

    packed_limit, on the CPU: the most memory for packed weights of convolutions, in that of their own; those beyond it
    transform theirs at each call. None: 1 for networks of more than 8 MB of weights; for smaller ones math.inf, no
    limit. Without a limit large networks evaluate a single image sooner; batches gain little.

    What was done to `net` is followed: subclasses, replaced methods, adapters, parametrizations, and hooks that change
    what layers compute. Python code inside `net.model` runs when a shape is first met, on tensors without numbers, and
    no more: hooks there that only look on or read numbers raise UserError, and random numbers stay as first drawn.
    Hooks of the copy itself run at every call. Weights, too, are read when a shape is first met; make another copy
    after changing them. Threads may use the copy at the
    same time, each on a stream of its own; while graphs are recorded, in the first two calls of a kind, none of them
    may wait for the whole device (torch.cuda.synchronize).
    """
    net = own_network(net)
    model = net.model.reference[0] if isinstance(net.model, PlannedUNet) else net.model
    device = next(model.parameters()).device
    if device.type not in PRECISIONS:
        raise UserError(f"accelerate() takes networks on the CPU or a CUDA device; this one is on {device}")
    if precision not in PRECISIONS[device.type]:
        expected = ", ".join(PRECISIONS[device.type])
        raise UserError(f"precision {precision!r} does not run on {device.type}; expected one of {expected}")
    if packed_limit is not None and not (isinstance(packed_limit, (int, float)) and packed_limit >= 0):
        raise UserError(f"packed_limit is {packed_limit!r}; expected a number of at least 0, or None")
    if device.type == "cpu" and native.cpu_reason() is not None:
        raise UserError(f"accelerate() is not possible here: {native.cpu_reason()}")
    if net.training or model.training:
        raise UserError("the network is in training mode; expected net.eval() before accelerate()")
    fast = copy.copy(net)
    # dicts of its own, so that what happens to the copy does not happen to the network
    fast.__dict__["_buffers"] = dict(net._buffers)
    fast.__dict__["_modules"] = {**net._modules, "model": PlannedUNet(model, precision, cuda_graph, packed_limit)}
    if device.type == "cuda":
        fast.use_fp16 = False  # the plan casts, to the type of its precision
    return fast


def own_network(net: Any) -> _Precond:
    """`net` as a network of this package: itself, or rebuilt if it is an instance of the published class."""
    if isinstance(net, _Precond):
        return net
    name = type(net).__name__
    kwargs = getattr(net, "init_kwargs", None)
    if name not in PRECONDS or not isinstance(net, torch.nn.Module) or not isinstance(kwargs, dict):
        raise UserError(f"accelerate() got an object of class {name}; expected {_expected(net)}")
    own = build(name, {key: value for key, value in kwargs.items()})
    try:
        own.load_state_dict(net.state_dict())
    except RuntimeError as error:
        fault = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"accelerate() got a {name} whose weights are not those its init_kwargs describe: {fault}"
        ) from None
    return own.train(net.training).requires_grad_(False)


def _expected(other: Any) -> str:
    """What should have been given in place of something that is no preconditioned network."""
    if isinstance(other, (str, os.PathLike)):
        return "a network: edm_fast.load(path)"
    for name, what in INSIDE.items():
        if isinstance(other, torch.nn.Module) and isinstance(getattr(other, name, None), torch.nn.Module):
            return f"the network inside what {what} made, net.{name}"
    if isinstance(other, (*UNETS.values(), PlannedUNet)):
        return f"the network around it, one of {', '.join(PRECONDS)}"
    return "a network of edm_fast or of the published classes"


def planner(
    device: torch.device,
    precision: str,
    cuda_graph: bool,
    packed_limit: float | None,
    choose: Callable[..., Any] | None,
) -> Any:
    """What makes a program of a traced network on this device."""
    if device.type == "cpu":
        return _cpu.Planner(precision, packed_limit, choose)
    return _gpu.Planner(precision, device, cuda_graph, choose)


def signature(model: torch.nn.Module) -> inspect.Signature:
    """The inputs by name; those of every raw network where a forward passes on whatever it is given."""
    own = inspect.signature(model.forward)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in own.parameters.values()):
        return inspect.signature(functools.partial(SongUNet.forward, model))  # type: ignore[arg-type]
    return own


def _everywhere() -> Iterator[Any]:
    """torch's hooks on all modules."""
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        yield getattr(torch.nn.modules.module, name, None)


def _untraced(method: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.compiler.disable, without its long import of torch's compiler where nothing is compiled."""
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return method(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(method))
        return disabled[0](*args, **kwargs)

    return call


class _Here(threading.local):
    """What the evaluations of this thread are part of."""

    program: Any = None  # that which records a graph: they become calls of it
    ran: set[Any] | None = None  # the shapes evaluated, while somebody wants to know


def _shape_fault(tensors: dict[str, torch.Tensor]) -> str | None:
    """Why these cannot be the inputs of one batch, or None."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            return f"{name} is of class {type(tensor).__name__}; expected a tensor"
        if tensor.ndim != DIMENSIONS.get(name, max(tensor.ndim, 1)):
            return f"{name} has shape {tuple(tensor.shape)}; expected {DIMENSIONS.get(name, 1)} dimensions"
    if "x" not in tensors:
        return "there is no x; expected images (N, C, H, W)"
    n = len(tensors["x"])
    for name, tensor in tensors.items():
        if len(tensor) not in (1, n):
            return f"{name} has {len(tensor)} rows; expected {n}, one for each image, or 1 for all of them"
    return None


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
        choose: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.reference = [model]  # in a list, so that torch does not count it as a part to convert, load or train
        self.device = next(model.parameters()).device
        self.how = precision, cuda_graph, packed_limit, choose
        self.planner = planner(self.device, *self.how)
        self.programs: collections.OrderedDict[Any, list[Program]] = collections.OrderedDict()
        self.sizes: dict[Any, int] = {}
        self.calls: collections.Counter[str] = collections.Counter()  # of each op in one evaluation
        self.seen: collections.OrderedDict[Any, Any] = (
            collections.OrderedDict()
        )  # kinds of sampling steps, and the shapes each evaluates
        self.here = _Here()
        self.lock = threading.Lock()
        self.signature = signature(model)
        self.training = False

    @_untraced
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs = self.signature.bind(*args, **kwargs).arguments
        tensors = {name: value for name, value in inputs.items() if value is not None}
        fault = _shape_fault(tensors) or self.fault(tensors.values())
        if fault is not None:
            raise UserError(fault)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            n = tensors["x"].shape[0]
            if n == 0:
                return self.reference[0](**inputs)
            parts = -(-n // self.images_at_once(tensors))
            size = -(-n // parts)
            rows = [slice(start, start + size) for start in range(0, n, size)]
            found = [self.run({name: t if len(t) == 1 else t[part] for name, t in tensors.items()}) for part in rows]
            return found[0] if len(found) == 1 else torch.cat(found)

    def fault(self, tensors: Collection[torch.Tensor]) -> str | None:
        """Why these are no inputs, or None."""
        if any(t.device != self.device for t in tensors):
            return f"a network accelerated for {self.device} got tensors on another device"
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return "an accelerated network has no gradients; expected torch.no_grad() or the network itself"
        if backend.transformed():
            return "an accelerated network does not run in torch.func or forward mode; expected the network itself"
        if self.reference[0].training:
            return "the network was put in training mode after accelerate(); expected net.eval()"
        return None

    def images_at_once(self, tensors: dict[str, torch.Tensor]) -> int:
        """How many images of this shape a program takes."""
        key = tuple((name, (1, *t.shape[1:])) for name, t in sorted(tensors.items()))
        if key not in self.sizes:
            self.sizes[key] = self.planner.images_at_once(lambda: trace(self.reference[0], dict(key)))
        return self.sizes[key]

    def run(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.here.program is not None:
            return self.here.program.inline(tensors)
        key = tuple((name, tuple(t.shape)) for name, t in sorted(tensors.items()))
        if self.here.ran is not None:
            self.here.ran.add(key)
        program = self.take(key)
        try:
            result = program.run(tensors)
        finally:
            self.give_back(key, program)
        self.note()
        return result

    def note(self) -> None:
        """For `explain`: an evaluation's ops have run, in a plan."""
        for name, calls in self.calls.items():
            op = backend.ops()[name]
            reasons = dict.fromkeys((*op.candidates, "reference"), "the network is accelerated and runs as one plan")
            op.note(f"accelerated {self.how[0]}", {**reasons, **dropped(name)}, calls)

    def replayer(self, net: Any) -> Callable[[Any, Evaluate, Sequence[float], Sequence[Any]], Sequence[Any]] | None:
        """What a sampler hands its steps to: replay(form, function, numbers, tensors) is function(numbers, *tensors).

        net: the accelerated network with this model, which the function evaluates. What else the function does is
        determined by `form`, which is hashable, the numbers, and the tensors or Nones; it waits for no device and draws
        no noise. From the second time on it runs as one CUDA graph, to the same bits. None: there are no graphs here,
        or the network has hooks or a forward of its own, which a graph would pass by.
        """
        if not self.planner.captured or type(net) not in PRECONDS.values():
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in (net, self)) or any(_everywhere()):
            return None
        if any(callable(value) for value in vars(net).values()) or "forward" in vars(self):
            return None
        plain = {name: value for name, value in vars(net).items() if isinstance(value, (bool, int, float, str))}
        buffers = [(name, buffer.data_ptr()) for name, buffer in net._buffers.items() if buffer is not None]
        return functools.partial(self.replayed, (type(net), *sorted(plain.items()), *buffers))

    @_untraced
    def replayed(
        self, net: Any, form: Any, function: Evaluate, numbers: Sequence[float], tensors: Sequence[torch.Tensor | None]
    ) -> Sequence[torch.Tensor]:
        """See `replayer`; `net` is what its formulas depend on besides the model."""
        shapes = [None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors]
        kind = net, form, tuple(shapes), tuple(sorted(backend.requested().items()))
        with self.lock:
            key = self.seen.get(kind)
            if key is not None:
                self.seen.move_to_end(kind)
        if key is None or self.fault([t for t in tensors if t is not None]) is not None:
            return self.watched(kind, function, numbers, tensors)
        program: Any = self.take(key)
        self.here.program = program
        try:
            # as for programs: not for inference mode alone
            with torch.no_grad(), torch.inference_mode(False):
                result = program.replayed(kind, function, numbers, tensors)
            self.note()
            return result
        finally:
            self.here.program = None
            self.give_back(key, program)

    def watched(self, kind: Any, function: Evaluate, numbers: Any, tensors: Any) -> Sequence[torch.Tensor]:
        """function(numbers, *tensors) as it is, and what it evaluates is remembered.

        A kind that comes again only after MAX_REPLAYS others is never recorded: it would be dropped before it is used.
        """
        ran: set[Any] = set()
        self.here.ran = ran
        try:
            result = function(numbers, *tensors)
        finally:
            self.here.ran = None
        if len(ran) == 1:
            with self.lock:
                self.seen[kind] = ran.pop()
                while len(self.seen) > _gpu.MAX_REPLAYS:
                    self.seen.popitem(last=False)
        return result

    def take(self, key: Any) -> Program:
        """A program that nobody runs, made if there is none."""
        with self.lock:
            if self.programs.get(key):
                return self.programs[key].pop()
        with torch.inference_mode(False):  # or the program could be used in inference mode alone
            graph = trace(self.reference[0], dict(key))
            self.calls = collections.Counter(node.kind for node in graph.nodes if node.kind in backend.ops())
            return self.planner(graph)

    def give_back(self, key: Any, program: Program) -> None:
        dropped = []
        with self.lock:
            self.programs.setdefault(key, []).append(program)
            self.programs.move_to_end(key)
            while sum(map(len, self.programs.values())) > MAX_PROGRAMS:
                oldest = next(iter(self.programs))
                if self.programs[oldest]:
                    dropped.append(self.programs[oldest].pop())
                if not self.programs[oldest]:
                    del self.programs[oldest]
        for old in dropped:
            old.finish()

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
