"""Checkpoints of the published code (`*.pkl` snapshots, `training-state-*.pt`), read as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from edm_fast.checkpoint._globals import PRECONDITIONERS, SnapshotRules
from edm_fast.checkpoint._records import (
    MAX_DEPTH,
    Budget,
    CheckpointError,
    Global,
    ModuleDictRecord,
    Persistent,
    TensorRecord,
    quote,
    to_tensor,
)
from edm_fast.checkpoint._source import TorchArchive
from edm_fast.checkpoint._unpickle import Reader

MAX_TEXT = 10_000


@dataclass
class StoredNetwork:
    """A network found in a file: how to build it and where its tensors are."""

    class_name: str
    init_kwargs: dict[str, Any]
    tensors: dict[str, TensorRecord] = field(repr=False)


@dataclass
class PublishedFile:
    """The dict a snapshot or a training state holds, as inert records."""

    objects: dict[Any, Any] = field(repr=False)
    budget: Budget

    def keys(self) -> list[str]:
        return [key for key in self.objects if isinstance(key, str)]

    def networks(self) -> list[str]:
        """Keys that hold a preconditioned network."""
        return [key for key in self.keys() if _is_network(self.objects[key])]

    def network(self, key: str) -> StoredNetwork:
        record = self.objects.get(key)
        if key not in self.objects:
            names = ", ".join(quote(k) for k in self.networks()) or "none"
            raise CheckpointError(f"holds no {quote(key)}; networks in it: {names}")
        if not _is_network(record):
            raise CheckpointError(f"{quote(key)} is not a network; expected one of {', '.join(PRECONDITIONERS)}")
        tensors: dict[str, TensorRecord] = {}
        _collect(record, "", tensors, self.budget, 0)
        return StoredNetwork(record.class_name, _init_kwargs(record, self.budget), tensors)

    def plain(self, key: str) -> Any:
        """Any entry as plain data: objects become dicts with `class_name`, tensors their shape and type."""
        return to_plain(self.objects[key], self.budget)


def read_published(data: memoryview, kind: str) -> PublishedFile:
    """Read a snapshot (`kind` "pickle") or torch's zip layout ("zip"). No weights are copied yet."""
    # bytes may be copied twice: once out of old-protocol text, once into the tensors
    budget = Budget(bytes_left=2 * len(data) + 65536)
    if kind == "zip":
        archive = TorchArchive(data)
        reader = Reader(archive.member(archive.pickle_name), SnapshotRules(budget, archive.storage), budget)
    else:
        reader = Reader(data, SnapshotRules(budget), budget)
    objects = reader.load()
    if not isinstance(objects, dict):
        raise CheckpointError(f"holds a {type(objects).__name__}; expected a dict with the key 'ema'")
    return PublishedFile(objects, budget)


def state_dict(network: StoredNetwork, budget: Budget) -> dict[str, torch.Tensor]:
    """Copy a stored network's tensors out of the file."""
    return {name: to_tensor(record, budget) for name, record in network.tensors.items()}


def optimizer_state(file: PublishedFile) -> dict[str, Any]:
    """Adam's state as torch's `load_state_dict` takes it: state {index: {...}}, param_groups [...]."""
    stored = file.objects.get("optimizer_state")
    if not isinstance(stored, dict) or not {"state", "param_groups"} <= set(stored):
        raise CheckpointError("holds no optimizer state; expected a training-state .pt")
    state, groups = stored["state"], stored["param_groups"]
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise CheckpointError("a malformed optimizer state")
    result: dict[int, dict[str, Any]] = {}
    for index, entry in state.items():
        if type(index) is not int or not isinstance(entry, dict):
            raise CheckpointError("a malformed optimizer state")
        result[index] = {str(name): _tensor_or_plain(value, file.budget) for name, value in entry.items()}
    plain_groups = to_plain(groups, file.budget)
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in plain_groups):
        raise CheckpointError("a malformed optimizer state")
    for group in plain_groups:
        if isinstance(group.get("betas"), list):
            group["betas"] = tuple(group["betas"])
    return {"state": result, "param_groups": plain_groups}


def _is_network(record: Any) -> TypeGuard[Persistent]:
    return isinstance(record, Persistent) and record.class_name in PRECONDITIONERS


def _tensor_or_plain(value: Any, budget: Budget) -> Any:
    return to_tensor(value, budget) if isinstance(value, TensorRecord) else to_plain(value, budget)


def to_plain(value: Any, budget: Budget, depth: int = 0) -> Any:
    """Records -> None, bool, int, float, str, list, dict with text or number keys. Tuples and sets become lists."""
    budget.spend_instructions(1)  # shared parts are visited again, so the walk is paid for like reading
    if depth > MAX_DEPTH:
        raise CheckpointError("data nested too deeply")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise CheckpointError(f"a text of {len(value)} characters; expected at most {MAX_TEXT}")
        budget.spend_instructions(len(value) // 16)
        return value
    if isinstance(value, list | tuple):
        return [to_plain(item, budget, depth + 1) for item in value]
    if isinstance(value, set):
        return [to_plain(item, budget, depth + 1) for item in sorted(value, key=str)]
    if isinstance(value, dict):
        return {key: to_plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, Persistent):
        return {"class_name": value.class_name, **to_plain(value.state, budget, depth + 1)}
    if isinstance(value, TensorRecord):
        return {"shape": list(value.size), "dtype": str(value.storage.dtype).removeprefix("torch.")}
    if isinstance(value, memoryview):
        return {"bytes": len(value)}
    if isinstance(value, Global):
        return f"{value.module}.{value.name}"
    raise CheckpointError(f"unexpected data of type {type(value).__name__}")


def _init_kwargs(record: Persistent, budget: Budget) -> dict[str, Any]:
    args, kwargs = record.state.get("_init_args"), record.state.get("_init_kwargs")
    if args is not None and not (isinstance(args, tuple) and len(args) == 0):
        raise CheckpointError(f"{record.class_name} was built with positional arguments; expected keywords only")
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"does not say how its {record.class_name} was built (no _init_kwargs)")
    plain = to_plain(kwargs, budget)
    if not all(isinstance(key, str) for key in plain):
        raise CheckpointError("a keyword that is not text")
    return plain


def _collect(record: Any, prefix: str, into: dict[str, TensorRecord], budget: Budget, depth: int) -> None:
    """Tensors of a module under dotted names, in the order of torch's state_dict."""
    if not isinstance(record, Persistent | ModuleDictRecord):
        raise CheckpointError(f"module {quote(prefix)} is not a module")
    if depth > MAX_DEPTH:
        raise CheckpointError("modules nested too deeply")
    budget.spend_instructions(1)
    for kind in ("_parameters", "_buffers", "_modules"):
        entries = record.state.get(kind)
        if not isinstance(entries, dict):
            raise CheckpointError(f"module {quote(prefix)} has no {kind}")
        for name, value in entries.items():
            if not isinstance(name, str) or not name or "." in name or len(name) > 100:
                raise CheckpointError(f"module {quote(prefix)} has a part with a malformed name")
            if value is None:
                continue
            if kind == "_modules":
                _collect(value, f"{prefix}{name}.", into, budget, depth + 1)
            elif isinstance(value, TensorRecord):
                budget.spend_instructions(1)
                into[prefix + name] = value
            else:
                raise CheckpointError(f"{quote(prefix + name)} is not a tensor")
