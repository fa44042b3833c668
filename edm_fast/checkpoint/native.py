"""The toolkit's own format: safetensors for the weights, JSON for how to build the network.

A single file (`NAME.safetensors`, the JSON in its metadata) or a folder in the Hugging Face hub layout
(`config.json` + `model.safetensors`, the JSON in both).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors
import torch

from edm_fast import __version__
from edm_fast.checkpoint._card import CARD_NAME, SAMPLER_NAME, is_outdated
from edm_fast.checkpoint._digest import weights_digest
from edm_fast.checkpoint._rebuild import StoredNetwork
from edm_fast.checkpoint._records import CheckpointError, quote
from edm_fast.checkpoint._source import describe_folder
from edm_fast.checkpoint._states import from_json, to_json
from edm_fast.errors import UserOSError
from edm_fast.files import atomic_write, utf8_name

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows has no such locks
    import fcntl  # type: ignore[no-redef]

FORMAT_VERSION = 1
METADATA_KEY = "edm_fast"
STATE_KEY = "edm_fast_training_state"  # of files that hold two networks and more, see _states.py
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG = 1 << 20
KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
KINDS |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
FLOATS = ("F32", "F16", "BF16", "F64")  # all become float32, but for the half-precision weights of EDM2


def save_native(net: torch.nn.Module, path: Path, folder: bool, others: Mapping[str, str] | None = None) -> None:
    """Write a plain network of this package (see `_writable`): one file, or a folder of two and the `others`, texts by
    name, whole or not at all."""
    config = make_config(net)
    metadata = {"format": "pt", METADATA_KEY: json.dumps(config)}
    if not folder:
        with atomic_write(path, kind="safetensors") as file:
            write_safetensors(file, net.state_dict(), metadata)
        if path.name == WEIGHTS_NAME:  # as if the folder had been named
            if (path.parent / CONFIG_NAME).exists() and _is_own_folder(path.parent):
                _write_config(path.parent, config)
            _set_aside(path.parent, weights_digest(net), {})
        return
    with whole_folder(path, net, others or {}) as inside:
        with atomic_write(inside / WEIGHTS_NAME) as file:
            write_safetensors(file, net.state_dict(), metadata)
        _write_config(inside, config)
        for name, text in (others or {}).items():
            (inside / name).write_text(text, encoding="utf-8")


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    with atomic_write(folder / CONFIG_NAME, "w") as file:
        file.write(json.dumps(config, indent=2) + "\n")


def save_state_file(path: Path, net: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Write `state`: dicts, lists, tuples, tensors, numbers, texts and None, nested, whole or not at all.

    `net` says how the networks are built whose weights stand under "net" and "ema". CheckpointError for other contents.
    """
    text, tensors = to_json(state)
    metadata = {"format": "pt", METADATA_KEY: json.dumps(make_config(net)), STATE_KEY: text}
    with atomic_write(path) as file:  # whatever is there: a damaged state makes room
        write_safetensors(file, tensors, metadata)


def read_state(path: Path, tensors: bool = True) -> Any:
    """What save_state_file has written, with None for each tensor if `tensors` is false."""
    with utf8_name(path) as name, safetensors.safe_open(name, framework="pt") as file:
        text = (file.metadata() or {}).get(STATE_KEY)
        if text is None:
            raise CheckpointError("a safetensors file of another kind; expected a training state")
        return from_json(text, lambda name: file.get_tensor(name).clone() if tensors else None)


@contextlib.contextmanager
def whole_folder(path: Path, net: torch.nn.Module, others: Mapping[str, str]) -> Iterator[Path]:
    """A folder to write into. At the end it becomes `path`, or its files take their places there. The rest stays, and
    so does a model card, which somebody may have written; see `_set_aside`."""
    if path.exists() and not path.is_dir():
        raise UserOSError(f"{path} is a file; expected the name of a folder, NAME.safetensors or NAME.pkl")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if (path / name).exists() and not _is_own_folder(path):
            raise UserOSError(f"{path / name} is not edm-fast's and is not replaced; expected another folder")
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp") as temporary:
        inside = Path(temporary) / "new"
        inside.mkdir()
        yield inside
        if not target.exists():  # an empty folder is filled: it may be somebody's current one
            with contextlib.suppress(OSError):  # another process may have made it in the meantime
                os.replace(inside, target)
                return
        with _alone_in(target):
            _set_aside(target, weights_digest(net), others)
            for new in inside.iterdir():
                if new.name != CARD_NAME or not (target / CARD_NAME).exists():
                    os.replace(new, target / new.name)


def _set_aside(folder: Path, digest: str, others: Mapping[str, str]) -> None:
    """A card and a sampler that would tell what is not true become NAME.old, or NAME.old2 where that is taken."""
    for name in (CARD_NAME, SAMPLER_NAME):
        with contextlib.suppress(OSError):
            if is_outdated((folder / name).read_text(encoding="utf-8", errors="replace"), digest, others):
                names = (folder / f"{name}.old{number if number > 1 else ''}" for number in itertools.count(1))
                os.replace(folder / name, next(old for old in names if not os.path.lexists(old)))


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Others that do the same wait, so that the two files of one network stay together."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_own_folder(path: Path) -> bool:
    try:
        if (path / CONFIG_NAME).exists():
            return bool(parse_config((path / CONFIG_NAME).read_text(encoding="utf-8")))
        with utf8_name(path / WEIGHTS_NAME) as readable, safetensors.safe_open(readable, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, ValueError, safetensors.SafetensorError):
        return False


def write_safetensors(file: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Header length (u64), JSON header, raw little-endian values of the types of the tensors.

    Written here because the library puts metadata in a random order; like this equal networks give equal files, and
    only one tensor at a time is copied.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        kind = tensor.dtype
        if kind not in KINDS:
            raise CheckpointError(f"cannot write {quote(name)}, which is {kind}; expected another type of numbers")
        start, end = end, end + kind.itemsize * tensor.numel()
        header[name] = {"dtype": KINDS[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        values = tensor.detach().cpu()
        array = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
        file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def make_config(net: torch.nn.Module) -> dict[str, Any]:
    return {
        "format": "edm-fast",
        "format_version": FORMAT_VERSION,
        "edm_fast_version": __version__,
        "class_name": type(net).__name__,
        "init_kwargs": {
            key: _to_json(value)
            for key, value in net.init_kwargs.items()  # type: ignore[union-attr,operator]
        },
    }


@dataclass
class NativeFile:
    """A safetensors file or folder: one network, under the key "ema"; in a training state "net", too."""

    path: Path

    def __post_init__(self) -> None:
        with utf8_name(weights_path(self.path)) as readable:
            self.file = safetensors.safe_open(readable, framework="pt")
        self.config = read_config(self.path, self.file.metadata() or {})
        self.is_state = bool(self.config) and STATE_KEY in (self.file.metadata() or {})
        layout = "safetensors folder" if self.path.is_dir() else "safetensors"
        self.format = layout if self.config else f"{layout} without edm-fast's configuration"
        self.format += " of a training state" * self.is_state

    def networks(self) -> list[str]:
        return ["net", "ema"] if self.is_state else ["ema"]

    def network(self, key: str) -> StoredNetwork:
        if key not in self.networks():
            raise CheckpointError(f"holds no {quote(key)}; networks in it: {', '.join(map(repr, self.networks()))}")
        class_name, kwargs = (self.config["class_name"], self.config["init_kwargs"]) if self.config else (None, {})
        prefix = f"{key}." * self.is_state
        names = (name for name in self.file.keys() if name.startswith(prefix))
        shapes = {name[len(prefix) :]: tuple(self.file.get_slice(name).get_shape()) for name in names}
        return StoredNetwork(class_name, kwargs, shapes, lambda name: self._read(prefix + name))

    def entries(self) -> dict[str, Any]:
        if not self.config:
            return {}
        state = json.loads(self.file.metadata()[STATE_KEY]) if self.is_state else {}
        plain = {
            key: value for key, value in state.items() if value is None or isinstance(value, bool | int | float | str)
        }
        return {"edm_fast_version": str(self.config.get("edm_fast_version"))[:40], **plain}

    def _read(self, name: str) -> torch.Tensor:
        kind = self.file.get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise CheckpointError(f"{quote(name)} is {kind}; expected one of {', '.join(FLOATS)}")
        return self.file.get_tensor(name).clone()


def weights_path(path: Path) -> Path:
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    if not weights.is_file():
        raise CheckpointError(f"a folder without {WEIGHTS_NAME}: {describe_folder(path)}")
    return weights


def read_config(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """The checked configuration, None without one. config.json decides and must agree with the weights' own copy."""
    embedded = parse_config(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    if not path.is_dir():
        return embedded
    config_path = path / CONFIG_NAME
    if not config_path.is_file():
        raise CheckpointError(f"a folder without {CONFIG_NAME}; expected {CONFIG_NAME} beside {WEIGHTS_NAME}")
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
    if isinstance(config, dict) and config.keys() & {"_class_name", "_diffusers_version", "architectures"}:
        raise CheckpointError("its configuration is that of diffusers or transformers, whose networks are not read")
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
