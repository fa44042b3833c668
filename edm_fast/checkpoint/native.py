"""The toolkit's own format: safetensors for the weights, JSON for how to build the network.

A single file (`NAME.safetensors`, the JSON in its metadata) or a folder in the Hugging Face hub layout
(`config.json` + `model.safetensors`, the JSON in both).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import torch

from edm_fast import __version__
from edm_fast.checkpoint._rebuild import rebuild
from edm_fast.checkpoint._records import CheckpointError, quote
from edm_fast.files import atomic_write, utf8_name

FORMAT_VERSION = 1
METADATA_KEY = "edm_fast"
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG = 1 << 20


def save_native(net: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Write `path` (a file if it ends in .safetensors, else a folder), each file whole or not at all."""
    path = Path(path)
    config = make_config(net)
    folder = path.suffix != ".safetensors"
    with atomic_write(path / WEIGHTS_NAME if folder else path, kind="safetensors") as file:
        write_safetensors(file, net.state_dict(), {"format": "pt", METADATA_KEY: json.dumps(config)})
    if folder:
        with atomic_write(path / CONFIG_NAME, "w", kind="json") as file:
            file.write(json.dumps(config, indent=2) + "\n")


def write_safetensors(file: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Header length (u64), JSON header, raw little-endian float32 values.

    Written here because the library puts metadata in a random order; like this equal networks give equal files, and
    only one tensor at a time is copied.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        file.write(tensor.detach().to("cpu", torch.float32).numpy().astype("<f4", copy=False).tobytes())


def make_config(net: torch.nn.Module) -> dict[str, Any]:
    kwargs = getattr(net, "init_kwargs", None)
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"cannot save a {type(net).__name__}; expected a preconditioned network of edm_fast")
    return {
        "format": "edm-fast",
        "format_version": FORMAT_VERSION,
        "edm_fast_version": __version__,
        "class_name": type(net).__name__,
        "init_kwargs": {key: _to_json(value) for key, value in kwargs.items()},
    }


def load_native(path: Path) -> torch.nn.Module:
    """Read a file or folder that `save_native` wrote; names, shapes and types must match exactly."""
    weights = weights_path(path)
    with utf8_name(weights) as readable, safetensors.safe_open(readable, framework="pt") as file:
        config = read_config(path, file.metadata() or {})
        shapes = {}
        for name in file.keys():
            part = file.get_slice(name)
            if part.get_dtype() != "F32":
                raise CheckpointError(f"{quote(name)} is {part.get_dtype()}; expected F32")
            shapes[name] = tuple(part.get_shape())
        return rebuild(config["class_name"], config["init_kwargs"], shapes, lambda name: file.get_tensor(name).clone())


def inspect_native(path: Path) -> dict[str, Any]:
    with utf8_name(weights_path(path)) as readable, safetensors.safe_open(readable, framework="pt") as file:
        config = read_config(path, file.metadata() or {})
        tensors = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    network = {"class_name": config["class_name"], "init_kwargs": config["init_kwargs"], "tensors": tensors}
    kind = "safetensors folder" if path.is_dir() else "safetensors"
    rest = {"edm_fast_version": str(config.get("edm_fast_version"))[:40]}
    return {"format": kind, "networks": {"ema": network}, "entries": rest}


def weights_path(path: Path) -> Path:
    if not path.is_dir():
        return path
    weights = path / WEIGHTS_NAME
    if not weights.is_file():
        raise CheckpointError(f"a folder without {WEIGHTS_NAME}; expected {CONFIG_NAME} and {WEIGHTS_NAME}")
    return weights


def read_config(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The checked configuration. In a folder config.json decides and must agree with the weights' own copy."""
    embedded = parse_config(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    if not path.is_dir():
        if embedded is None:
            raise CheckpointError("a safetensors file without edm-fast's configuration in its metadata")
        return embedded
    config_path = path / CONFIG_NAME
    if not config_path.is_file():
        raise CheckpointError(f"a folder without {CONFIG_NAME}; expected {CONFIG_NAME} and {WEIGHTS_NAME}")
    if config_path.stat().st_size > MAX_CONFIG:
        raise CheckpointError(f"{CONFIG_NAME} is larger than {MAX_CONFIG} bytes")
    config = parse_config(config_path.read_text(encoding="utf-8"))
    same = ("class_name", "init_kwargs")
    if embedded is not None and any(embedded[key] != config[key] for key in same):
        raise CheckpointError(f"{CONFIG_NAME} and {WEIGHTS_NAME} belong to different networks")
    return config


def parse_config(text: str) -> dict[str, Any]:
    if len(text) > MAX_CONFIG:
        raise CheckpointError(f"a configuration of {len(text)} characters; expected at most {MAX_CONFIG}")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError("its configuration is not valid JSON") from None
    if not isinstance(config, dict) or config.get("format") != "edm-fast":
        raise CheckpointError('its configuration is not edm-fast\'s; expected {"format": "edm-fast", ...}')
    if type(config.get("format_version")) is not int or config["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"format version {quote(str(config.get('format_version')))}; expected {FORMAT_VERSION}")
    if not isinstance(config.get("class_name"), str) or not isinstance(config.get("init_kwargs"), dict):
        raise CheckpointError("its configuration misses class_name or init_kwargs")
    config["init_kwargs"] = {key: _from_json(value) for key, value in config["init_kwargs"].items()}
    return config


def _to_json(value: Any) -> Any:
    """Infinity is the text "inf", since JSON has no such number."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"cannot write a keyword of type {type(value).__name__}; expected numbers, text or lists")


def _from_json(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") and isinstance(value, str) else value
