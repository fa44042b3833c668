"""Checkpoints: read published files without running anything in them, write safetensors + JSON."""

from __future__ import annotations

import functools
import importlib.resources
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edm_fast.checkpoint import _hub
from edm_fast.checkpoint._card import CARD_NAME, SAMPLER_NAME, hub_files, is_outdated, left_untold
from edm_fast.checkpoint._digest import add_weights, weights_digest
from edm_fast.checkpoint._notes import CheckpointWarning, other_attributes
from edm_fast.checkpoint._rebuild import rebuild
from edm_fast.checkpoint._records import CheckpointError, damaged
from edm_fast.checkpoint._source import map_file, recognise
from edm_fast.checkpoint._writable import destination, plain_copy
from edm_fast.checkpoint.export import save_pkl
from edm_fast.checkpoint.native import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    NativeFile,
    read_state,
    save_native,
    save_state_file,
)
from edm_fast.checkpoint.published import (
    PublishedFile,
    averages,
    optimizer_state,
    read_published,
    state_dict,
    values,
)
from edm_fast.errors import UserError
from edm_fast.files import fetch, is_url, kept_as, user_path
from edm_fast.networks._precond import _Precond

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "add_weights",
    "demo_path",
    "destination",
    "find_sampler",
    "from_pretrained",
    "hub_files",
    "inspect",
    "left_untold",
    "load",
    "load_state_file",
    "load_tensors",
    "load_training_state",
    "load_values",
    "push_to_hub",
    "save",
    "save_pkl",
    "save_state_file",
    "weights_digest",
]

PathLike = str | os.PathLike[str]


def load(
    path_or_url: PathLike,
    device: torch.device | str | None = None,
    key: str = "ema",
    sha256: str | None = None,
    preset: str | None = None,
) -> _Precond:
    """Load a network: eval mode, no gradients, float32; half-precision weights of EDM2 stay so, as they are defined.

    `path_or_url`: "demo" or "demo-solids", the models of digits and of solids inside the package, a published snapshot
    (.pkl), a training state (with key="net" for the trained weights), a safetensors file or folder of `save`, a
    state_dict of torch.save or safetensors, also of guided-diffusion, score_sde or deepinv (with `preset`, the name of
    the published model whose weights they are, see networks.PRESETS, or a .json file with class_name and init_kwargs as
    in config.json), the http(s) address of a file, or USER/REPO or USER/REPO@REVISION on the Hugging Face hub.
    Recognised by content.
    `key`: which network of a file that holds several.
    CheckpointWarning if the network may not be the one its author had.
    """
    path, name = _locate(path_or_url, sha256)
    with damaged(name):
        file = _open(path)
        if key == "ema" and "net" in file.networks() and "ema" not in file.networks():
            raise CheckpointError('a training state: it holds the trained weights, not their average; pass key="net"')
        stored = file.network(key)
        net = rebuild(stored, preset)
        others = other_attributes(net, stored.attributes)[:1]
        notes = [*stored.notes, *(f"{text}, which is used" for text in others)]
    for note in notes:
        warnings.warn(f"{name}: {note}", CheckpointWarning, stacklevel=2)
    if device is None:
        return net
    try:
        return net.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        if type(error) not in (RuntimeError, AssertionError):
            raise  # out of memory has a class and a message of its own
        raise UserError(f"device {device} cannot be used: {str(error).splitlines()[0][:160]}") from None


DEMO = "demo"
DEMOS = {DEMO: "demo-mnist.safetensors", "demo-solids": "demo-solids.safetensors"}
"""Names of the models inside the package wherever a network is named, whatever the folder holds, and their files: MNIST
digits and solids in colour, both 32x32. A file of such a name is "./demo" or a Path."""


def demo_path(name: str = DEMO) -> Path:
    """The checkpoint of a demo model inside the package. `name`: one of DEMOS."""
    path = Path(str(importlib.resources.files("edm_fast"))) / "assets" / DEMOS[name]
    if not path.is_file():
        raise UserError(f"this installation has no {name} model; expected --network=PATH or URL")
    return path


def from_pretrained(repo: str, device: torch.device | str | None = None, revision: str | None = None) -> _Precond:
    """`load` of a repository of the Hugging Face hub, USER/REPO, at a branch, tag or commit.

    Needs huggingface_hub (pip install edm-fast[hub]), which keeps its cache and knows its user. config.json and
    model.safetensors are fetched and nothing else, so that nothing of a repository is ever executed.
    """
    name = repo if revision is None else f"{repo}@{revision}"
    return load(_hub.download(name, (CONFIG_NAME, WEIGHTS_NAME)), device)


def push_to_hub(
    net: torch.nn.Module,
    repo: str,
    *,
    license: str | None = None,
    training: Mapping[str, Any] | None = None,
    sampler: Any = None,
    private: bool | None = None,
    message: str = "Upload by edm-fast",
) -> str:
    """Write a network to a repository of the Hugging Face hub, USER/REPO, as one commit; its address.

    The repository is made if it is new. A model card goes with the network if the repository has none, or one that
    names other weights or another sampler; of what a card that stays does not tell there is a warning. license is an
    identifier of the hub's, training what training_options.json holds, sampler what `load_sampler` gave for the
    network; its file goes along, for `load_sampler(repo)`, and one of other weights is removed.
    UserError before anything is sent for what `save` refuses.
    """
    plain = plain_copy(net)
    others = hub_files(plain, repo.partition("@")[0], license, training, sampler)
    with tempfile.TemporaryDirectory() as folder:
        save_native(plain, Path(folder) / "net", True, others)
        beside = {CARD_NAME: True, SAMPLER_NAME: False}
        stale = functools.partial(is_outdated, digest=weights_digest(plain), others=others)
        address, cards = _hub.upload(repo, Path(folder) / "net", private, message, beside, stale)
    for untold in (", ".join(left_untold(card, license, training, sampler)) for card in cards):
        if untold:
            warnings.warn(f"{repo}: the model card there stays, without {untold}", CheckpointWarning, stacklevel=2)
    return address


def save(net: torch.nn.Module, path: PathLike, others: Mapping[str, str] | None = None) -> None:
    """Write a network: NAME.safetensors, NAME.pkl (see `save_pkl`), else a folder in the Hugging Face hub layout, with
    `others`, texts by name of file, in it.

    Compiled, data-parallel and accelerated networks are written as the network inside. UserError before anything is
    written for an ending of another kind of file, or if the network would not load again: a class that is not one of
    this package's, or weights, layers or attributes that its init_kwargs do not describe.
    """
    form = destination(path)
    if form == "pkl":
        save_pkl(net, path)
    else:
        save_native(plain_copy(net), Path(user_path(path)), form == "folder", others)


def load_tensors(path_or_url: PathLike, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """The weights of a file of any network, by name, read as data; the counters of batch norms are left out."""
    path, name = _locate(path_or_url, sha256)
    with damaged(name):
        stored = _open(path).network("ema")
        return {key: stored.read(key) for key in stored.shapes if not key.endswith("num_batches_tracked")}


def load_training_state(path_or_url: PathLike) -> dict[str, Any]:
    """Read a training state, a published training-state-*.pt or one of this project: {"net": state_dict,
    "optimizer_state", "class_name", "init_kwargs"}.

    Of published EDM2: class_name is None, as the file does not say how its network was built, and there are "ema",
    state_dicts by the width of the profile ("0.050"), "state" and "loss_fn".
    """
    path, name = _locate(path_or_url, None)
    with damaged(name):
        data = map_file(path)
        kind = recognise(data)
        if kind == "safetensors":
            if not NativeFile(path).is_state:
                raise CheckpointError("a safetensors file of a network; expected a training-state")
            state = read_state(path)
            return {key: state[key] for key in ("net", "optimizer_state", "class_name", "init_kwargs")}
        file = read_published(data, kind)
        network = file.network("net")
        state = {
            "net": state_dict(network),
            "optimizer_state": optimizer_state(file),
            "class_name": network.class_name,
            "init_kwargs": network.init_kwargs,
        }
        if "optimizer" not in file.keys():
            return state
        return {**state, "ema": averages(file), **{key: file.plain(key) for key in ("state", "loss_fn")}}


def load_state_file(path: Path, tensors: bool = True) -> Any:
    """A training state of this project, with None for each tensor if `tensors` is false; UserError for other files.

    Those of earlier versions, in the format of torch.save, are read as data, too: torch.load is not called, whose
    reader of plain tensors could corrupt memory before torch 2.10 (CVE-2026-24747).
    """
    with damaged(str(path)):
        data = map_file(path)
        if (kind := recognise(data)) == "safetensors":
            return read_state(path, tensors)
        file = read_published(data, kind)
        return values(file.objects, file.budget)


def load_values(path: PathLike) -> Any:
    """A pickle of numbers, texts, lists, dicts and arrays, read as data; arrays become tensors."""
    with damaged(os.fspath(path)):
        data = map_file(Path(path))
        if (kind := recognise(data)) != "pickle":
            raise CheckpointError(f"a file of another kind ({kind}); expected a pickle")
        file = read_published(data, kind)
        return values(file.objects, file.budget)


def inspect(path_or_url: PathLike, sha256: str | None = None) -> dict[str, Any]:
    """What a checkpoint holds, as plain data; no weights are read.

    {"format", "networks": {key: {"class_name", "init_kwargs", "tensors": {name: shape}, "notes"}}, "entries": {...}}:
    class_name is None where there are weights alone, entries are the rest (loss_fn, augment_pipe, dataset_kwargs):
    objects as dicts of attributes with "class_name". A network that cannot be read stands in notes as the reason.
    """
    path, name = _locate(path_or_url, sha256)
    with damaged(name):
        file = _open(path)
        networks: dict[str, dict[str, Any]] = {}
        for key in file.networks():
            try:
                stored = file.network(key)
            except CheckpointError as error:
                networks[key] = {"class_name": None, "init_kwargs": {}, "tensors": {}, "notes": [str(error)]}
                continue
            networks[key] = {
                "class_name": stored.class_name,
                "init_kwargs": stored.init_kwargs,
                "tensors": {name: list(shape) for name, shape in stored.shapes.items()},
                "notes": stored.notes,
            }
        return {"format": file.format, "networks": networks, "entries": file.entries()}


def find_sampler(name: PathLike) -> Path:
    """The sampler file of a demo model, of a repository of the Hugging Face hub, or at a path."""
    if name in DEMOS:
        found = demo_path(str(name)).with_suffix(".sampler.json")
        if not found.is_file():
            raise UserError(f"no sampler has been tuned to {name}; expected {DEMO} or a file of edm-fast tune")
        return found
    path = user_path(name)
    return _hub.download(path, (SAMPLER_NAME,)) / SAMPLER_NAME if _hub.is_repository(path) else Path(path)


def _open(path: Path) -> PublishedFile | NativeFile:
    """Any checkpoint, recognised by content."""
    if path.is_dir():
        return NativeFile(path)
    data = map_file(path)
    kind = recognise(data)
    return NativeFile(path) if kind == "safetensors" else read_published(data, kind)


def _locate(path_or_url: PathLike, sha256: str | None) -> tuple[Path, str]:
    if path_or_url in DEMOS:
        name = str(path_or_url)
        return fetch(demo_path(name), sha256=sha256), name
    try:
        name = user_path(path_or_url, url=True)
    except UserError as error:
        raise CheckpointError(str(error)) from None
    if _hub.is_repository(name):
        return fetch(_hub.download(name, (CONFIG_NAME, WEIGHTS_NAME)), sha256=sha256), name
    if not is_url(name) and not Path(name).exists():
        raise CheckpointError(f"{name}: no such file or folder")
    path = fetch(name, sha256=sha256)
    return path, (name if name.isprintable() else ascii(name)) + kept_as(name, path)
