"""accelerate(): a network as an inference plan, with the same call and the same images, sooner.

A plan is made for each set of input shapes when it is first met: the network is traced, every layer gets the fastest
algorithm its precision allows, and the calls run on packed weights in one arena of memory.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections import OrderedDict
from typing import Any

import torch

from edm_fast import native
from edm_fast.errors import UserError
from edm_fast.networks import build
from edm_fast.networks._precond import PRECONDS, _Precond
from edm_fast.plan._algorithms import ALLOWED, Measured
from edm_fast.plan._cpu import Program, Weights
from edm_fast.plan._trace import trace

__all__ = ["accelerate"]

MAX_PROGRAMS = 4  # kept by one network, for as many input shapes or threads


def accelerate(net: Any, precision: str = "fp32", cuda_graph: bool = True) -> Any:
    """A copy of `net` that evaluates faster: same class, attributes and call, no gradients, weights as they are now.

    precision, on the CPU: "exact" keeps every layer's rounding error within twice the reference's; "fp32" may spend
    more of float32's digits on speed. `net` is a network of this package or an instance of the published classes, on
    the CPU and in evaluation mode. Weights are read when a shape is first met; make another copy after changing them.
    """
    net = own_network(net)
    device = next(net.parameters()).device
    if device.type != "cpu":
        raise UserError(f"accelerate() takes networks on the CPU so far; this one is on {device}")
    if precision not in ALLOWED:
        raise UserError(f"precision {precision!r} does not run on the CPU; expected one of {', '.join(ALLOWED)}")
    if native.cpu_reason() is not None:
        raise UserError(f"accelerate() is not possible here: {native.cpu_reason()}")
    if net.training:
        raise UserError("the network is in training mode; expected net.eval() before accelerate()")
    fast = copy.copy(net)
    fast.__dict__["_modules"] = {**net._modules, "model": PlannedUNet(net.model, precision)}
    return fast


def own_network(net: Any) -> _Precond:
    """`net` as a network of this package: itself, or rebuilt if it is an instance of the published class."""
    if isinstance(net, _Precond):
        return net
    name = type(net).__name__
    kwargs = getattr(net, "init_kwargs", None)
    if name not in PRECONDS or not isinstance(net, torch.nn.Module) or not isinstance(kwargs, dict):
        raise UserError(f"accelerate() got a {name}; expected a network of edm_fast or of the published classes")
    own = build(name, {key: value for key, value in kwargs.items()})
    own.load_state_dict(net.state_dict())
    return own.train(net.training).requires_grad_(False)


class PlannedUNet(torch.nn.Module):
    """Stands in for a raw network F(x; c_noise, labels). Threads may call it at the same time."""

    def __init__(self, model: torch.nn.Module, precision: str) -> None:
        super().__init__()
        # not registered: the copy's parameters would be counted twice
        self.__dict__["reference"] = model
        self.precision = precision
        self.choose = Measured(precision)
        self.weights = Weights()
        self.programs: OrderedDict[Any, list[Program]] = OrderedDict()
        self.lock = threading.Lock()
        self.names = list(inspect.signature(model.forward).parameters)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs = {**dict(zip(self.names, args)), **kwargs}
        tensors = {name: value for name, value in inputs.items() if value is not None}
        if any(t.device.type != "cpu" for t in tensors.values()):
            raise UserError("a network accelerated for the CPU got tensors on another device")
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values()):
            raise UserError("an accelerated network has no gradients; expected torch.no_grad() or the network itself")
        with torch.no_grad():
            if tensors["x"].shape[0] == 0:
                return self.reference(**inputs)
            key = tuple((name, tuple(t.shape)) for name, t in sorted(tensors.items()))
            program = self.take(key)
            try:
                return program.run(tensors)
            finally:
                self.give_back(key, program)

    def take(self, key: Any) -> Program:
        """A program that nobody runs, made if there is none."""
        with self.lock:
            if self.programs.get(key):
                return self.programs[key].pop()
        return Program(trace(self.reference, dict(key)), self.choose, self.weights)

    def give_back(self, key: Any, program: Program) -> None:
        with self.lock:
            self.programs.setdefault(key, []).append(program)
            self.programs.move_to_end(key)
            while sum(map(len, self.programs.values())) > MAX_PROGRAMS:
                oldest = next(iter(self.programs))
                if self.programs[oldest]:
                    self.programs[oldest].pop()
                if not self.programs[oldest]:
                    del self.programs[oldest]
