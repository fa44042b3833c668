"""Training states of this project: one safetensors file of all tensors; numbers, texts and which tensor belongs where
are JSON in its metadata. Here is that JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from edm_fast.checkpoint._records import CheckpointError, quote

# how JSON holds what it has no form for: an object with this one key
TENSOR, TUPLE, ITEMS = "$tensor", "$tuple", "$items"


def to_json(state: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """(the JSON of nested dicts, lists, tuples, numbers, texts and None; the tensors in them by name)."""
    tensors: dict[str, torch.Tensor] = {}
    return json.dumps(_encoded(state, "", tensors)), tensors


def from_json(text: str, tensor: Callable[[str], Any]) -> Any:
    """What to_json was given; tensor(name) is put where a tensor was."""
    return _decoded(json.loads(text), tensor)


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


def _decoded(value: Any, tensor: Callable[[str], Any]) -> Any:
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
