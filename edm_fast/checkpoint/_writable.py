"""What can be written, and where: everything that save() and its like write is what load() reads back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from edm_fast import networks
from edm_fast.checkpoint._globals import PRECONDITIONERS
from edm_fast.checkpoint._notes import other_attributes
from edm_fast.checkpoint._rebuild import WRAPPERS, StoredNetwork, clean_name, rebuild
from edm_fast.checkpoint._records import CheckpointError, quote
from edm_fast.errors import UserOSError
from edm_fast.files import user_path

FORMS = "expected NAME.safetensors, NAME.pkl (the published structure), or a folder without such an ending"
FILE_ENDING = re.compile(r"\.([a-z]+|h5|hdf5|pt2|7z)", re.IGNORECASE)  # model-v1.5 and run.2024 are folders


def destination(path: str | os.PathLike[str]) -> str:
    """The form to write by its name: "safetensors", "pkl" or "folder". UserError for other endings of files."""
    text = user_path(path)
    suffix = Path(text).suffix
    form = suffix[1:].lower()
    if form in ("safetensors", "pkl"):
        if text.endswith(("/", os.sep)):
            raise UserOSError(f"{text} names a folder by its slash and a file by its ending; {FORMS}")
        if Path(text).is_dir():
            raise UserOSError(f"{text} is a folder; expected the name of a file")
        return form
    if FILE_ENDING.fullmatch(suffix) and Path(text).name not in (".", ".."):
        raise UserOSError(f"{text}: files ending in {suffix} are not written; {FORMS}")
    return "folder"


def unwrapped(net: torch.nn.Module) -> torch.nn.Module:
    """The network inside torch.compile's module, DataParallel, DistributedDataParallel or AveragedModel."""
    while isinstance(net, torch.nn.Module) and type(net).__name__ not in PRECONDITIONERS:
        inner = [net._modules[name] for name in WRAPPERS if net._modules.get(name) is not None]
        if len(inner) != 1 or len(net._modules) != 1:
            break
        net = inner[0]  # type: ignore[assignment]
    return net


def plain_copy(net: torch.nn.Module) -> torch.nn.Module:
    """The network that load() will give back, on the CPU: of this package's classes, with nothing added.

    CheckpointError if that is another one: layers or tensors of other kinds, or attributes changed since it was built.
    Hooks are not part of it. Nothing is written before.
    """
    net = unwrapped(net)
    name, kwargs = type(net).__name__, getattr(net, "init_kwargs", None)
    own = isinstance(net, tuple(vars(networks)[known] for known in PRECONDITIONERS))
    if name not in PRECONDITIONERS or not isinstance(kwargs, dict) or (own and type(net) is not vars(networks)[name]):
        bases = [base.__name__ for base in type(net).__mro__[1:] if base.__name__ in PRECONDITIONERS]
        hint = f" (a subclass of {bases[0]}, of whose code a checkpoint holds nothing)" if bases else ""
        raise CheckpointError(
            f"cannot save a {name}{hint}; expected a preconditioned network of edm_fast: {', '.join(PRECONDITIONERS)}"
        )
    try:
        copy = rebuild(_as_stored(net, name, kwargs))
        _compare(net, copy, own)
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot save this {name}, it would not load again: {error}; expected weights and attributes as its "
            "init_kwargs describe them (take off weight_norm, pruning or adapters first)"
        ) from None
    return copy


def _as_stored(net: torch.nn.Module, class_name: str, kwargs: dict[str, Any]) -> StoredNetwork:
    state = {clean_name(name): tensor for name, tensor in net.state_dict().items()}

    def read(name: str) -> torch.Tensor:
        tensor = state[name].detach()
        if tensor.is_meta:
            raise CheckpointError(f"{quote(name)} has no values (it is on the device meta)")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{quote(name)} is {tensor.dtype}, not floating-point")
        return tensor.cpu().to_dense() if tensor.layout != torch.strided else tensor.cpu().contiguous()

    return StoredNetwork(class_name, kwargs, {name: tuple(tensor.shape) for name, tensor in state.items()}, read)


def _compare(net: torch.nn.Module, copy: torch.nn.Module, own: bool) -> None:
    """Modules and their attributes; those of the published classes have names and kinds of their own."""
    if not own:
        return
    modules = {clean_name(name): module for name, module in net.named_modules()}
    for name, module in copy.named_modules():
        if type(modules.get(name)) is not type(module):
            found = type(modules[name]).__name__ if name in modules else "missing"
            raise CheckpointError(f"its module {quote(name)} is {found}, not {type(module).__name__}")
    changed = other_attributes(copy, {name: vars(module) for name, module in modules.items()})
    if changed:
        raise CheckpointError(changed[0])
