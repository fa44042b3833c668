"""Networks of other projects: any torch module that is called as forward(x, t) or forward(x, t, labels).

A plan stands in for the module's forward in a copy of it: same class, attributes and call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from typing import Any

import torch

from edm_fast.errors import UserError

LEVEL = 1.0  # a time that any convention has
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Result:
    """What kind of thing a forward gives: the image itself, a tuple, or an object with the image as `sample`."""

    kind: Any = torch.Tensor

    def image(self, found: Any) -> Any:
        self.kind = type(found)
        if isinstance(found, tuple) and len(found) != 1:
            raise UserError(f"its forward gives {len(found)} things; expected one image")
        image = found[0] if isinstance(found, tuple) else getattr(found, "sample", found)
        if not isinstance(image, torch.Tensor):
            raise UserError(f"its forward gives an object of class {type(image).__name__}; expected one image")
        return image

    def like(self, image: torch.Tensor) -> Any:
        if issubclass(self.kind, torch.Tensor):
            return image
        return (image,) if issubclass(self.kind, tuple) else self.kind(sample=image)

    def __deepcopy__(self, memo: Any) -> Result:
        return self  # traced copies of a network tell it


class RawForeign(torch.nn.Module):
    """A foreign network with the call of a raw network F(x; c_noise, labels), for plans."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.result = net, Result()
        self.training = False

    def forward(self, x: Any, noise_labels: Any, class_labels: Any = None) -> Any:
        inputs = (x, noise_labels) if class_labels is None else (x, noise_labels, class_labels)
        return self.result.image(self.net.forward(*inputs))  # hooks of the whole run at each call of the copy


def fault(net: torch.nn.Module) -> str | None:
    """Why no plan can be made for a module, or None."""
    name = type(net).__name__
    parameters = [*inspect.signature(net.forward).parameters.values()]
    inputs = [p for p in parameters if p.kind in POSITIONAL]
    if len(inputs) < 2:
        return f"{name} is called as forward{inspect.signature(net.forward)}; expected forward(x, t) or (x, t, labels)"
    if more := [p.name for p in inputs[3:] if p.default is p.empty]:
        return f"the forward of {name} needs {more[0]}; expected forward(x, t) or forward(x, t, labels)"
    tensors = [*net.parameters(), *net.buffers()]
    if not tensors or any(t.device.type != "cpu" for t in tensors):
        return f"{name} is not on the CPU, where networks that are not of this package can be accelerated"
    if others := {t.dtype for t in net.parameters()} - {torch.float32}:
        return f"{name} has weights of {others.pop()}; expected float32"
    if any(part.training for part in net.modules()):
        return f"{name} is in training mode; expected net.eval() before accelerate()"
    return None


def accelerated(net: torch.nn.Module, plan: Any) -> Any:
    """A copy of `net` whose forward is the plan of RawForeign(net)."""
    fast = copy.copy(net)
    fast.__dict__["_modules"] = dict(net._modules)
    fast.__dict__["forward"] = functools.partial(_forward, net, plan)
    fast.__dict__["train"] = _Train(fast)
    return fast


class _Train:
    """The method of an accelerated copy, whose parts are those of the network. It does not keep the copy alive."""

    def __init__(self, fast: torch.nn.Module) -> None:
        self.fast = weakref.ref(fast)

    def __call__(self, mode: bool = True) -> torch.nn.Module | None:
        if mode:
            raise UserError("an accelerated network cannot be trained; expected the network itself")
        return self.fast()

    def __reduce__(self) -> Any:
        return _Train, (self.fast(),)


def _forward(net: torch.nn.Module, plan: Any, *args: Any, **kwargs: Any) -> Any:
    signature = inspect.signature(net.forward)
    given = signature.bind(*args, **kwargs).arguments
    names = [name for name, p in signature.parameters.items() if p.kind in POSITIONAL][:3]
    whole = given.pop("return_dict", True)
    x, t, labels = (given.pop(name, None) for name in (*names, "")[:3])
    for name, value in given.items():
        if value is not signature.parameters[name].default:
            raise UserError(f"an accelerated {type(net).__name__} got {name}; expected x, t and labels alone")
    if net.training:
        raise UserError(f"the {type(net).__name__} was put in training mode after accelerate(); expected net.eval()")
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        raise UserError(f"x is {getattr(x, 'dtype', type(x).__name__)}; expected images (N, C, H, W) of float32")
    if labels is not None and not (isinstance(labels, torch.Tensor) and labels.is_floating_point()):
        raise UserError("class labels by number are not followed; expected rows of floating-point numbers")
    t = torch.as_tensor(t, dtype=torch.float32, device=x.device).reshape(-1)
    image = plan(x, t, labels) if labels is not None else plan(x, t)
    result: Result = plan.reference[0].result
    return result.like(image) if whole else (image,)
