"""Write a snapshot in the published structure (`*.pkl`), for tools that read nothing else."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from edm_fast.checkpoint._emit import Emitter
from edm_fast.checkpoint._globals import CLASS_NAMES
from edm_fast.checkpoint._records import CheckpointError, ModuleDictRecord, Persistent
from edm_fast.checkpoint._writable import plain_copy
from edm_fast.files import atomic_write

PLAIN = (type(None), bool, int, float, str, list, tuple, dict, set)


def save_pkl(
    net: torch.nn.Module,
    path: str | os.PathLike[str],
    loss_fn: object = None,
    augment_pipe: object = None,
    dataset_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write {ema, loss_fn, augment_pipe, dataset_kwargs} as stored objects of the published structure.

    No published source is embedded: each object's `module_src` is one line that imports its class from edm_fast, so
    a reader that executes it needs edm_fast installed. `edm_fast.load` reads the file back bit for bit. CheckpointError
    before anything is written if the network would not load again (see `save`).
    """
    content = {
        "ema": _module_record(plain_copy(net)),
        "loss_fn": _object_record(loss_fn),
        "augment_pipe": _object_record(augment_pipe),
        "dataset_kwargs": dict(dataset_kwargs or {}),
    }
    with atomic_write(path, kind="pickle") as file:
        Emitter(file).dump(content)


def _module_record(module: torch.nn.Module) -> Persistent | ModuleDictRecord:
    state = {key: _module_attribute(value) for key, value in vars(module).items() if _kept(key, value)}
    state["training"] = False
    if type(module) is torch.nn.ModuleDict:
        return ModuleDictRecord(state)
    kwargs = getattr(module, "init_kwargs", None)
    return _record(module, state, kwargs if isinstance(kwargs, dict) else None)


def _module_attribute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _module_record(v) if isinstance(v, torch.nn.Module) else v for key, v in value.items()}
    return value


def _kept(key: str, value: Any) -> bool:
    """Parameters, buffers, modules and plain attributes; hooks keep their (emptied) places."""
    return isinstance(value, (*PLAIN, torch.Tensor)) or key in ("_parameters", "_buffers", "_modules")


def _object_record(value: object) -> Persistent | None:
    """A loss or augmentation pipeline: its plain attributes."""
    if value is None:
        return None
    return _record(value, {key: item for key, item in vars(value).items() if isinstance(item, PLAIN)}, {})


def _record(value: object, state: dict[str, Any], init_kwargs: dict[str, Any] | None) -> Persistent:
    kind = type(value)
    if kind.__name__ not in CLASS_NAMES:
        raise CheckpointError(f"cannot write a {kind.__name__}: the published structure has no such class")
    for key in state:
        if key.endswith("_hooks") or "_hooks_" in key:
            state[key] = OrderedDict()
    source = f"from {kind.__module__} import {kind.__name__}\n"
    state |= {"_init_args": (), "_init_kwargs": init_kwargs}
    return Persistent(kind.__name__, state, source)
