"""Checkpoints of the published code (`*.pkl` snapshots, `training-state-*.pt`), read as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from edm_fast.checkpoint import _notes
from edm_fast.checkpoint._foreign import Foreign
from edm_fast.checkpoint._globals import LAYERS, NETWORKS, PRECONDITIONERS, SnapshotRules, read_old_layout
from edm_fast.checkpoint._rebuild import WRAPPERS, StoredNetwork
from edm_fast.checkpoint._records import (
    MAX_DEPTH,
    Budget,
    CheckpointError,
    Global,
    ModuleDictRecord,
    NumpyArray,
    NumpyDtype,
    Persistent,
    Storage,
    TensorRecord,
    quote,
    to_tensor,
)
from edm_fast.checkpoint._source import OldStorages, TorchArchive
from edm_fast.checkpoint._unpickle import Reader

MAX_TEXT = 10_000
OPTIMIZERS = {"optimizer_state", "optimizer"}  # where training states keep Adam's state; the second is EDM2's
OWN_STATE = "edm-fast training state"  # how the format of this project's own training states begins
# classes of other projects that use the published way of storing objects
RELATIVES = {
    "ECMPrecond": "a consistency model of ECT",
    "Generator": "a StyleGAN generator",
    "Discriminator": "a StyleGAN discriminator",
}
Tensors = dict[str, TensorRecord]


@dataclass
class _Parts:
    """What is found on a walk through a stored network: by dotted name, and the source texts."""

    tensors: Tensors = field(default_factory=dict)
    attributes: dict[str, dict[Any, Any]] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)


@dataclass
class PublishedFile:
    """The dict a snapshot, a training state or a file of torch.save holds, as inert records.

    A network or state_dict that is the whole file stands under the key "ema".
    """

    format: str
    objects: dict[Any, Any] = field(repr=False)
    budget: Budget

    def keys(self) -> list[str]:
        return [key for key in self.objects if isinstance(key, str)]

    def networks(self) -> list[str]:
        """Keys that hold a network, or the weights of one; `network` says why if it cannot be read."""
        return [key for key in self.keys() if _is_module(self.objects[key]) or self._readable(key)]

    def _readable(self, key: str) -> bool:
        record = self._record(key)
        return _is_network(record) or _is_state_dict(record, self.budget)

    def _record(self, key: str) -> Any:
        """What stands under a key; of the average of score_sde, a list in the order of the parameters, a state_dict."""
        record, model = _unwrapped(self.objects[key]), self.objects.get("model")
        averages = record.get("shadow_params") if isinstance(record, dict) else None
        if not isinstance(averages, list) or not _is_state_dict(model, self.budget):
            return record
        # neither levels nor frequencies are parameters
        fixed = {name for name in model if name.endswith(("sigmas", "all_modules.0.W"))}
        named = dict(zip([name for name in model if name not in fixed], averages))
        same = len(named) == len(averages) == len(model) - len(fixed)
        if not same or not all(isinstance(found, TensorRecord) for found in averages):
            return record
        return {name: named.get(name, tensor) for name, tensor in model.items()}

    def network(self, key: str) -> StoredNetwork:
        if key not in self.objects:
            names = ", ".join(quote(k) for k in self.keys() if self._readable(k))
            choose = " (choose with key=..., or --key)" if names else ""
            raise CheckpointError(f"holds no {quote(key)}; networks in it: {names or 'none'}{choose}")
        record = self._record(key)
        if _is_state_dict(record, self.budget):
            return self._stored(*self._own_configuration(), record)
        if not _is_network(record):
            raise CheckpointError(f"{quote(key)} {_why_no_network(record)}")
        kwargs, parts = _init_kwargs(record, self.budget), _Parts()
        _collect(record, "", parts, self.budget)
        notes = [
            *_notes.changed_attributes(record, kwargs),
            *_notes.sources(record.class_name, parts.sources),
            *_notes.loss(self.objects.get("loss_fn"), record.class_name, kwargs),
        ]
        return self._stored(record.class_name, kwargs, parts.tensors, notes, parts.attributes)

    def _stored(self, class_name: str | None, kwargs: dict[str, Any], tensors: Tensors, *notes: Any) -> StoredNetwork:
        shapes = {name: record.size for name, record in tensors.items()}

        def read(name: str) -> torch.Tensor:
            if not tensors[name].storage.dtype.is_floating_point:
                raise CheckpointError(f"{quote(name)} does not hold floating-point numbers")
            return to_tensor(tensors[name], self.budget)

        return StoredNetwork(class_name, kwargs, shapes, read, *notes)

    def _own_configuration(self) -> tuple[str | None, dict[str, Any]]:
        """How to build the networks of this project's training states, which hold it beside the weights."""
        name, kwargs = self.objects.get("class_name"), self.objects.get("init_kwargs")
        if not self.format.startswith(OWN_STATE) or not isinstance(name, str) or not isinstance(kwargs, dict):
            return None, {}
        return name, to_plain(kwargs, self.budget)

    def entries(self) -> dict[str, Any]:
        """All that is no network, as plain data; not the optimizer's numbers."""
        hidden = {*self.networks(), *OPTIMIZERS, "optimizer_states"}
        if self.format.startswith(OWN_STATE):
            hidden |= {"class_name", "init_kwargs", "rng"}
        return {key: self.plain(key) for key in self.keys() if key not in hidden}

    def plain(self, key: str) -> Any:
        """Any entry as plain data: objects become dicts with `class_name`, tensors their shape and type."""
        return to_plain(self.objects[key], self.budget)


def read_published(data: memoryview, kind: str) -> PublishedFile:
    """Read a snapshot (`kind` "pickle") or a file of torch.save ("zip", "old layout"). No weights are copied yet."""
    # bytes may be copied twice: once out of old-protocol text, once into the tensors
    budget = Budget(bytes_left=2 * len(data) + 65536)
    if kind == "zip":
        archive = TorchArchive(data)
        objects = Reader(archive.member(archive.pickle_name), SnapshotRules(budget, archive.storage), budget).load()
    elif kind == "old layout":
        storages = OldStorages()
        objects, keys, position = read_old_layout(data, SnapshotRules(budget, storages.storage), budget)
        storages.fill(data, keys, position)
    else:
        objects = Reader(data, SnapshotRules(budget), budget).load()
    objects = _unwrapped(objects)
    if isinstance(objects, Foreign):
        raise CheckpointError(_unreadable(objects))
    if isinstance(objects, Persistent):
        return PublishedFile("network by itself", {"ema": objects}, budget)
    if _is_state_dict(objects, budget):
        return PublishedFile("state_dict", {"ema": objects}, budget)
    if not isinstance(objects, dict):
        found = type(objects).__name__.removesuffix("Record").lower()
        raise CheckpointError(f"holds a {found}; expected a dict with the key 'ema'")
    return PublishedFile(_format(objects, kind), objects, budget)


def _format(objects: dict[Any, Any], kind: str) -> str:
    own = objects.get("format")
    if isinstance(own, str) and own.startswith(OWN_STATE):
        return own[:40]
    if "pytorch-lightning_version" in objects:
        return "Lightning checkpoint"
    if kind == "pickle":
        return "pickle"
    return "training state" if OPTIMIZERS & objects.keys() else "torch file"


def state_dict(network: StoredNetwork) -> dict[str, torch.Tensor]:
    """Copy a stored network's tensors out of the file."""
    return {name: network.read(name) for name in network.shapes}


def optimizer_state(file: PublishedFile) -> dict[str, Any]:
    """Adam's state as torch's `load_state_dict` takes it: state {index: {...}}, param_groups [...]."""
    stored = next((file.objects[key] for key in file.keys() if key in OPTIMIZERS), None)
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


def averages(file: PublishedFile) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of an EDM2 training state: "0.050" (the width of the profile, "" of the traditional one) ->
    its state_dict."""
    stored = file.objects.get("ema")
    if _is_state_dict(stored, file.budget):
        return {"": {name: to_tensor(record, file.budget) for name, record in stored.items()}}
    profiles = stored if isinstance(stored, dict) else {}
    stds, emas = to_plain(profiles.get("stds", []), file.budget), profiles.get("emas", [])
    if not isinstance(emas, list) or not isinstance(stds, list) or len(stds) != len(emas):
        raise CheckpointError("malformed averages of weights")
    if not all(isinstance(std, float) for std in stds) or not all(_is_state_dict(ema, file.budget) for ema in emas):
        raise CheckpointError("malformed averages of weights")
    return {
        f"{std:.3f}": {name: to_tensor(record, file.budget) for name, record in ema.items()}
        for std, ema in zip(stds, emas, strict=True)
    }


def _is_network(record: Any) -> TypeGuard[Persistent]:
    return isinstance(record, Persistent) and record.class_name in PRECONDITIONERS


def _is_module(record: Any) -> bool:
    """Any stored torch module, of whatever class."""
    return isinstance(record, Persistent | Foreign) and isinstance(record.state, dict) and "_modules" in record.state


def _unwrapped(record: Any) -> Any:
    """The module inside DataParallel, torch.compile's module and their like."""
    for _ in range(MAX_DEPTH):
        inner = record.state.get("_modules") if isinstance(record, Foreign) and _is_module(record) else None
        if not isinstance(inner, dict) or len(inner) != 1 or not WRAPPERS & inner.keys():
            break
        record = next(iter(inner.values()))
    return record


def _is_state_dict(value: Any, budget: Budget) -> TypeGuard[Tensors]:
    if not isinstance(value, dict) or not isinstance(next(iter(value.values()), None), TensorRecord):
        return False
    budget.spend_instructions(len(value))  # a dict may stand in many places
    return all(isinstance(key, str) and isinstance(item, TensorRecord) for key, item in value.items())


def _why_no_network(record: Any) -> str:
    expected = f"expected one of {', '.join(PRECONDITIONERS)}"
    if isinstance(record, Foreign):
        return _unreadable(record)
    if isinstance(record, Persistent) and record.class_name not in (*NETWORKS, *LAYERS):
        relative = RELATIVES.get(record.class_name)
        said = f" ({relative}, which edm-fast does not read)" if relative else ""
        found = f"a stored object of the unknown class {quote(record.class_name)}{said}"
        return f"is not a network but {found}; {expected}"
    return f"is not a network; {expected}"


def _unreadable(record: Foreign) -> str:
    """Why a record of an unknown name is not read; of a module also what to do."""
    way = "; expected its weights: torch.save(net.state_dict(), NEW) by its own code, then load NEW with a preset"
    return f"cannot be read: {record.why}{way if _is_module(record) else ''}"


def _tensor_or_plain(value: Any, budget: Budget) -> Any:
    return to_tensor(value, budget) if isinstance(value, TensorRecord) else to_plain(value, budget)


def to_plain(value: Any, budget: Budget, depth: int = 0) -> Any:
    """Records -> None, bool, int, float, str, list, dict with text or number keys. Tuples and sets become lists."""
    budget.spend_instructions(1)  # shared parts are visited again, so the walk is paid for like reading
    if depth > MAX_DEPTH:
        raise CheckpointError("data nested too deeply")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, NumpyArray):
        value = value.tensor or {"class_name": "numpy.ndarray"}
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
        return {_plain_key(key): to_plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, Persistent):
        # of a network only how it was made: its parts would fill pages
        state = {k: v for k, v in value.state.items() if "_modules" not in value.state or k == "_init_kwargs"}
        return {"class_name": value.class_name, **to_plain(state, budget, depth + 1)}
    if isinstance(value, Foreign) and value.args is not None:
        parts = {"args": value.args, "state": value.state, "items": value.items}
        filled = {k: to_plain(part, budget, depth + 1) for k, part in parts.items() if part}
        return {"class_name": f"{value.module}.{value.name}", **filled}
    if isinstance(value, TensorRecord):
        return {"shape": list(value.size), "dtype": str(value.storage.dtype).removeprefix("torch.")}
    if isinstance(value, memoryview):
        return {"bytes": len(value)}
    if isinstance(value, Global | Foreign):
        return _plain_key(value)
    if isinstance(value, Storage):
        return {"values": value.numel}
    if isinstance(value, ModuleDictRecord | NumpyDtype):
        return {"class_name": type(value).__name__.removesuffix("Record")}
    raise CheckpointError(f"unexpected data of type {type(value).__name__}")


def values(record: Any, budget: Budget, depth: int = 0) -> Any:
    """Records of tensors, numbers, texts, lists and dicts as the values they stand for; arrays become tensors."""
    budget.spend_instructions(1)
    if depth > MAX_DEPTH:
        raise CheckpointError("data nested too deeply")
    if isinstance(record, NumpyArray) and record.tensor is not None:
        record = record.tensor
    if isinstance(record, TensorRecord):
        return to_tensor(record, budget)
    if isinstance(record, dict):
        return {key: values(item, budget, depth + 1) for key, item in record.items()}
    if isinstance(record, list | tuple):
        return type(record)(values(item, budget, depth + 1) for item in record)
    if record is None or isinstance(record, bool | int | float | str):
        return record
    raise CheckpointError(f"unexpected data of type {type(record).__name__}")


def _plain_key(key: Any) -> Any:
    return f"{key.module}.{key.name}" if isinstance(key, Global | Foreign) else key


def _init_kwargs(record: Persistent, budget: Budget) -> dict[str, Any]:
    args, kwargs = record.state.get("_init_args"), record.state.get("_init_kwargs")
    if "_init_kwargs" not in record.state:  # an object of this package's own classes
        kwargs = record.state.get("init_kwargs")
    if args is not None and not (isinstance(args, tuple) and len(args) == 0):
        raise CheckpointError(f"{record.class_name} was built with positional arguments; expected keywords only")
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"does not say how its {record.class_name} was built (no _init_kwargs)")
    for key, value in kwargs.items():
        if isinstance(value, Foreign):
            raise CheckpointError(f"keyword {quote(key)} of its {record.class_name} cannot be read: {value.why}")
    plain = to_plain(kwargs, budget)
    if not all(isinstance(key, str) for key in plain):
        raise CheckpointError("a keyword that is not text")
    return plain


def _collect(record: Any, prefix: str, into: _Parts, budget: Budget, depth: int = 0) -> None:
    """Tensors and plain attributes of a module under dotted names, in the order of torch's state_dict."""
    if isinstance(record, Foreign):
        raise CheckpointError(f"its module {quote(prefix[:-1])} cannot be read: {record.why}")
    if not isinstance(record, Persistent | ModuleDictRecord):
        raise CheckpointError(f"module {quote(prefix)} is not a module")
    if isinstance(record, Persistent):
        if record.class_name not in (*PRECONDITIONERS, *NETWORKS, *LAYERS):
            unknown = f"its module {quote(prefix[:-1])} is of the unknown class {quote(record.class_name)}"
            raise CheckpointError(f"{unknown}; expected one of {', '.join((*NETWORKS, *LAYERS))}")
        into.sources.add(record.source)
    if depth > MAX_DEPTH:
        raise CheckpointError("modules nested too deeply")
    budget.spend_instructions(1)
    into.attributes[prefix[:-1]] = record.state
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
                into.tensors[prefix + name] = value
            else:
                why = f": {value.why}" if isinstance(value, Foreign) else ""
                raise CheckpointError(f"{quote(prefix + name)} is not a tensor{why}")
