"""What accelerate() is given: a network of this package, one of the published classes, or another torch module."""

from __future__ import annotations

import os
from typing import Any

import torch

from edm_fast.errors import UserError
from edm_fast.networks import UNet, build
from edm_fast.networks._precond import PRECONDS, UNETS, _Precond

INSIDE = {"_orig_mod": "torch.compile", "module": "a parallel or averaged model"}  # where wrappers keep the network


def is_foreign(net: Any) -> bool:
    """Whether `net` is a torch module that neither this package nor the published code knows, nor a wrapper of one."""
    if not isinstance(net, torch.nn.Module) or isinstance(net, (_Precond, *UNETS.values(), UNet)):
        return False
    inside = any(isinstance(getattr(net, name, None), torch.nn.Module) for name in INSIDE)
    return not inside and type(net).__name__ not in (*PRECONDS, "PlannedUNet")


def own_network(net: Any) -> _Precond:
    """`net` as a network of this package: itself, or rebuilt if it is an instance of the published class."""
    if isinstance(net, _Precond):
        return net
    name = type(net).__name__
    kwargs = getattr(net, "init_kwargs", None)
    if name not in PRECONDS or not isinstance(net, torch.nn.Module) or not isinstance(kwargs, dict):
        raise UserError(f"accelerate() got an object of class {name}; expected {_expected(net)}")
    own, state = build(name, {key: value for key, value in kwargs.items()}), net.state_dict()
    for key, tensor in own.state_dict(keep_vars=True).items() if own.half_weights else ():
        if key in state and state[key].dtype == torch.float16:
            tensor.data = tensor.data.half()
    try:
        own.load_state_dict(state)
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
    if isinstance(other, (*UNETS.values(), UNet)) or type(other).__name__ == "PlannedUNet":
        return f"the network around it, one of {', '.join(PRECONDS)}"
    return "a network of edm_fast or of the published classes, or another torch module that is called as forward(x, t)"
