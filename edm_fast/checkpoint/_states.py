"""Training states of this project: one safetensors file of all tensors; numbers, texts and which tensor belongs where
are JSON in its metadata. Earlier versions wrote them with torch.save; those are read as data, too: torch.load is not
called, whose reader of plain tensors could corrupt memory before torch 2.10 (CVE-2026-24747).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from edm_fast.checkpoint._records import MAX_DEPTH, Budget, CheckpointError, TensorRecord, quote, to_tensor
from edm_fast.checkpoint._source import map_file, recognise
from edm_fast.checkpoint.native import METADATA_KEY, STATE_KEY, make_config, write_safetensors
from edm_fast.checkpoint.published import read_published
from edm_fast.files import atomic_write, utf8_name

# how JSON holds what it has no form for: an object with this one key
TENSOR, TUPLE, ITEMS = "$tensor", "$tuple", "$items"


def save_state_file(path: Path, net: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Write `state`: dicts, lists, tuples, tensors, numbers, texts and None, nested, whole or not at all.

    `net` says how the networks are built whose weights stand under "net" and "ema". CheckpointError for other contents.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encoded(state, "", tensors))
    metadata = {"format": "pt", METADATA_KEY: json.dumps(make_config(net)), STATE_KEY: text}
    with atomic_write(path) as file:  # whatever is there: a damaged state makes room
        write_safetensors(file, tensors, metadata, cast=None)


def load_state_file(path: Path) -> Any:
    """What save_state_file, or torch.save in an earlier version, has written; CheckpointError for other files."""
    if recognise(data := map_file(path)) != "safetensors":
        file = read_published(data, recognise(data))
        return _values(file.objects, file.budget)
    with utf8_name(path) as name, safetensors.safe_open(name, framework="pt") as opened:
        return _decoded(_json(opened), lambda name: opened.get_tensor(name).clone())


def state_entries(path: Path) -> Any:
    """As load_state_file, without the numbers in tensors where that saves time."""
    if recognise(map_file(path)) != "safetensors":
        return load_state_file(path)
    with utf8_name(path) as name, safetensors.safe_open(name, framework="pt") as opened:
        return _decoded(_json(opened), lambda name: None)


def _json(opened: Any) -> Any:
    text = (opened.metadata() or {}).get(STATE_KEY)
    if text is None:
        raise CheckpointError("a safetensors file of another kind; expected a training state")
    return json.loads(text)


def _encoded(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; its tensors are added to `tensors` under the names of their places."""
    if isinstance(value, torch.Tensor):
        if name in tensors:
            raise CheckpointError(f"two tensors of a training state have the name {quote(name)}")
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, Mapping):
        pairs = {key: _encoded(item, f"{name}.{key}" if name else str(key), tensors) for key, item in value.items()}
        plain = all(isinstance(key, str) for key in pairs) and not pairs.keys() & {TENSOR, TUPLE, ITEMS}
        return pairs if plain else {ITEMS: [[key, item] for key, item in pairs.items()]}
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{quote(name)} is of type {type(value).__name__}; expected tensors, numbers, texts or lists")


def _decoded(value: Any, tensor: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {TENSOR}:
        return tensor(value[TENSOR])
    if value.keys() == {TUPLE}:
        return tuple(_decoded(value[TUPLE], tensor))
    if value.keys() == {ITEMS}:
        return {key: _decoded(item, tensor) for key, item in value[ITEMS]}
    return {key: _decoded(item, tensor) for key, item in value.items()}


def _values(record: Any, budget: Budget, depth: int = 0) -> Any:
    """Records of a file of torch.save as the values they stand for."""
    budget.spend_instructions(1)
    if depth > MAX_DEPTH:
        raise CheckpointError("data nested too deeply")
    if isinstance(record, TensorRecord):
        return to_tensor(record, budget)
    if isinstance(record, dict):
        return {key: _values(item, budget, depth + 1) for key, item in record.items()}
    if isinstance(record, list | tuple):
        return type(record)(_values(item, budget, depth + 1) for item in record)
    if record is None or isinstance(record, bool | int | float | str):
        return record
    raise CheckpointError(f"unexpected data of type {type(record).__name__}")
