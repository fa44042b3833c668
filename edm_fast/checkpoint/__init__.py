"""Checkpoints: read published files without running anything in them, write safetensors + JSON."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path
from typing import Any

import torch

from edm_fast.checkpoint._rebuild import rebuild
from edm_fast.checkpoint._records import CheckpointError, damaged, quote, to_tensor
from edm_fast.checkpoint._source import map_file, recognise
from edm_fast.checkpoint.export import save_pkl
from edm_fast.checkpoint.native import inspect_native, load_native, save_native
from edm_fast.checkpoint.published import PublishedFile, optimizer_state, read_published, state_dict
from edm_fast.errors import UserError
from edm_fast.files import fetch, is_url, kept_as, user_path

__all__ = ["CheckpointError", "demo_path", "inspect", "load", "load_training_state", "save", "save_pkl"]

PathLike = str | os.PathLike[str]


def load(
    path_or_url: PathLike, device: torch.device | str | None = None, key: str = "ema", sha256: str | None = None
) -> torch.nn.Module:
    """Load a network: eval mode, float32, no gradients.

    `path_or_url`: "demo" for the digits model inside the package, a published snapshot (.pkl), a training state (.pt,
    with key="net"), a safetensors file or folder of `save`, or the http(s) address of a file. Recognised by content.
    `key`: which network of a snapshot.
    """
    path, name = _locate(path_or_url, sha256)
    with damaged(name):
        if path.is_dir():
            net = load_native(path)
        else:
            data = map_file(path)
            kind = recognise(data)
            net = load_native(path) if kind == "safetensors" else _load_published(read_published(data, kind), key)
    if device is None:
        return net
    try:
        return net.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        if type(error) not in (RuntimeError, AssertionError):
            raise  # out of memory has a class and a message of its own
        raise UserError(f"device {device} cannot be used: {str(error).splitlines()[0][:160]}") from None


DEMO = "demo"
"""Names the demo model wherever a network is named, whatever the folder holds. A file of that name is "./demo" or a
Path."""


def demo_path() -> Path:
    """The demo checkpoint inside the package: MNIST digits, 32x32."""
    path = Path(str(importlib.resources.files("edm_fast"))) / "assets" / "demo-mnist.safetensors"
    if not path.is_file():
        raise UserError("this installation has no demo model; expected --network=PATH or URL")
    return path


def save(net: torch.nn.Module, path: PathLike) -> None:
    """Write a network: a single file if `path` ends in .safetensors, else a folder in the Hugging Face hub layout."""
    save_native(net, user_path(path))


def load_training_state(path_or_url: PathLike) -> dict[str, Any]:
    """Read a published training-state-*.pt: {"net": state_dict, "optimizer_state", "class_name", "init_kwargs"}."""
    path, name = _locate(path_or_url, None)
    with damaged(name):
        data = map_file(path)
        kind = recognise(data)
        if kind == "safetensors":
            raise CheckpointError("a safetensors file; expected a training-state .pt")
        file = read_published(data, kind)
        network = file.network("net")
        return {
            "net": state_dict(network, file.budget),
            "optimizer_state": optimizer_state(file),
            "class_name": network.class_name,
            "init_kwargs": network.init_kwargs,
        }


def inspect(path_or_url: PathLike, sha256: str | None = None) -> dict[str, Any]:
    """What a checkpoint holds, as plain data; no weights are read.

    {"format", "networks": {key: {"class_name", "init_kwargs", "tensors": {name: shape}}}, "entries": {...}}, where
    entries are the rest (loss_fn, augment_pipe, dataset_kwargs): objects as dicts of attributes with "class_name".
    """
    path, name = _locate(path_or_url, sha256)
    with damaged(name):
        if path.is_dir():
            return inspect_native(path)
        data = map_file(path)
        kind = recognise(data)
        if kind == "safetensors":
            return inspect_native(path)
        return _inspect_published(read_published(data, kind), kind)


def _locate(path_or_url: PathLike, sha256: str | None) -> tuple[Path, str]:
    if path_or_url == DEMO:
        return fetch(demo_path(), sha256=sha256), DEMO
    try:
        name = user_path(path_or_url, url=True)
    except UserError as error:
        raise CheckpointError(str(error)) from None
    if not is_url(name) and not Path(name).exists():
        raise CheckpointError(f"{name}: no such file or folder")
    path = fetch(name, sha256=sha256)
    return path, (name if name.isprintable() else ascii(name)) + kept_as(name, path)


def _load_published(file: PublishedFile, key: str) -> torch.nn.Module:
    if key == "ema" and key not in file.objects and "net" in file.objects:
        raise CheckpointError('a training state: it holds the trained weights, not their average; pass key="net"')
    network = file.network(key)
    shapes = {name: record.size for name, record in network.tensors.items()}
    for name, record in network.tensors.items():
        if not record.storage.dtype.is_floating_point:
            raise CheckpointError(f"{quote(name)} does not hold floating-point numbers")
    return rebuild(
        network.class_name, network.init_kwargs, shapes, lambda name: to_tensor(network.tensors[name], file.budget)
    )


def _inspect_published(file: PublishedFile, kind: str) -> dict[str, Any]:
    networks = {}
    for key in file.networks():
        stored = file.network(key)
        networks[key] = {
            "class_name": stored.class_name,
            "init_kwargs": stored.init_kwargs,
            "tensors": {name: list(record.size) for name, record in stored.tensors.items()},
        }
    rest = {key: file.plain(key) for key in file.keys() if key not in networks and key != "optimizer_state"}
    return {"format": "training state" if kind == "zip" else "pickle", "networks": networks, "entries": rest}
