"""From a class name, keywords and the tensors a file really holds to a network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edm_fast import networks
from edm_fast.checkpoint._globals import PRECONDITIONERS
from edm_fast.checkpoint._layouts import NEW_ORDER, ORDER, Source, find_sources
from edm_fast.checkpoint._records import CheckpointError, quote
from edm_fast.errors import UserError
from edm_fast.files import user_path
from edm_fast.networks._precond import _Precond

Shape = tuple[int, ...]

MAX_LIST = 64
MAX_PRESET = 1 << 20
WRAPPERS = {"module", "_orig_mod"}  # DataParallel and its like; torch.compile
SCALING = {"mul", "__mul__", "__rmul__", "sub", "__sub__", "add", "__add__", "div", "__truediv__"}


@dataclass
class StoredNetwork:
    """A network found in a file: how to build it, and where its tensors are."""

    class_name: str | None  # None: the file holds weights alone (a state_dict)
    init_kwargs: dict[str, Any]
    shapes: Mapping[str, Shape]
    read: Callable[[str], torch.Tensor] = field(repr=False)  # copies one tensor out of the file
    notes: list[str] = field(default_factory=list)  # what its user should be told
    attributes: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict, repr=False)  # of its modules, by name


class _NoWeights(TorchFunctionMode):
    """While a network is built: random weights become shapes without memory (they are about to be replaced, and the
    generator does not move), and all other memory together stays below `limit` elements."""

    def __init__(self, limit: int):
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.rand, torch.randn):
            return torch.empty(*args, device="meta")
        # scaling a weight without memory leaves it as it is; torch's own way there imports its compiler, which takes
        # a second and writes to the temporary folder
        if getattr(func, "__name__", "") in SCALING and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        if func in (torch.ones, torch.zeros, torch.empty, torch.full, torch.arange, torch.linspace):
            self.left -= func(*args, **{**kwargs, "device": "meta"}).numel()
            if self.left < 0:
                raise CheckpointError("its keywords imply more memory than its tensors take")
        return func(*args, **kwargs)


def rebuild(stored: StoredNetwork, preset: str | None = None) -> _Precond:
    """Build the network, compare every name and shape with the file, then take the file's tensors as its weights.

    Nothing large is allocated before the comparison: a small file cannot ask for a large network. Returned in eval
    mode, without gradients, on the CPU, in float32, but where half-precision weights are part of an EDM2 network.
    `preset`: the published model whose weights a state_dict holds, or a .json file that says how it is built.
    """
    class_name, init_kwargs, new_order = configuration(stored, preset)
    shapes = stored.shapes
    check_limits(class_name, init_kwargs, len(shapes))
    try:
        with _NoWeights(limit=2 * sum(math.prod(shape) for shape in shapes.values()) + 1_000_000):
            net = networks.build(class_name, dict(init_kwargs))
    except CheckpointError:
        raise
    except (UserError, ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"its {class_name} cannot be built: {reason}") from None
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    names = own_names(shapes, wanted)
    sources = find_sources(net, names, shapes, new_order) if stored.class_name is None else None
    if sources is None:
        if stored.class_name is None and not wanted.keys() & names.keys():
            first = quote(next(iter(shapes), ""))
            raise CheckpointError(f"its tensors have names of no layout that is known, the first is {first}")
        compare_shapes(wanted, {name: shapes[theirs] for name, theirs in names.items()})
        sources = {name: Source((names[name],)) for name in wanted}
    tensors = {name: source.make(*map(stored.read, source.names)) for name, source in sources.items()}
    keeps = {torch.float32, torch.float16} if net.half_weights else {torch.float32}
    tensors = {name: t if t.dtype in keeps else t.to(torch.float32) for name, t in tensors.items()}
    # what other projects do not store are filters and tables, which are made with the network
    net.load_state_dict(tensors, strict=tensors.keys() == wanted.keys(), assign=True)
    if any(t.is_meta for t in (*net.parameters(), *net.buffers())):
        raise CheckpointError(f"its {class_name} has weights that the file does not hold")
    return net.eval().requires_grad_(False)


def configuration(stored: StoredNetwork, preset: str | None) -> tuple[str, Mapping[str, Any], bool | None]:
    """Class name and keywords: the file's own, those of a published model, or those of a .json file; and the order of
    attention of guided-diffusion, see `_layouts`.
    """
    if preset is not None and not preset.endswith(".json") and preset not in networks.PRESETS:
        known = ", ".join(sorted(networks.PRESETS))
        raise CheckpointError(f"unknown preset {quote(preset)}; expected one of {known}, or a .json file")
    if stored.class_name is not None:
        if preset is not None:
            raise CheckpointError(f"says itself how its {stored.class_name} is built; expected no preset")
        return stored.class_name, stored.init_kwargs, None
    if preset is not None and preset.endswith(".json"):
        return read_preset(preset)
    if preset is None:
        raise CheckpointError(
            f"a state_dict of {len(stored.shapes)} tensors without edm-fast's configuration; expected the name of "
            "the published model they belong to, or of a .json file that says how to build theirs: "
            "load(..., preset=NAME), or edm-fast convert --preset=NAME"
        )
    return *networks.PRESETS[preset], NEW_ORDER.get(preset)


def read_preset(path: str) -> tuple[str, dict[str, Any], bool | None]:
    """As `configuration`, of a JSON file such as the config.json of a network."""
    try:
        with open(user_path(path), encoding="utf-8") as file:
            found = json.loads(file.read(MAX_PRESET))
    except OSError as error:
        raise CheckpointError(f"preset {path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        found = None
    kinds = {"class_name": str, "init_kwargs": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(
            f'preset {path} is no JSON object with "class_name" and "init_kwargs", as in a config.json'
        )
    if not isinstance(order := found.get(ORDER), bool | None):
        raise CheckpointError(f'preset {path} has "{ORDER}" {order!r}; expected true or false')
    return found["class_name"], found["init_kwargs"], order


def clean_name(name: str) -> str:
    """A dotted name without the parts that torch's wrappers add: no module of this package is called so."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def own_names(stored: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Our name -> the stored one. Dropped are the names of wrappers and a prefix that all names have, such as `net.`
    of a Lightning module, if exactly the wanted names are left.
    """
    # n_averaged is the number of updates, which torch.optim.swa_utils.AveragedModel stores among the weights
    names = [name for name in stored if name != "n_averaged"]
    cleaned = {clean_name(name): name for name in names}
    if len(cleaned) < len(names):  # two networks, one of them wrapped
        return {name: name for name in names}
    prefix = ""
    for part in next(iter(cleaned), "").split(".")[:-1]:
        prefix += part + "."
        rest = {name.removeprefix(prefix): theirs for name, theirs in cleaned.items() if name.startswith(prefix)}
        if len(rest) == len(cleaned) and rest.keys() == set(wanted):
            return rest
    return cleaned


def check_limits(class_name: str, init_kwargs: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse what would take long to build. networks.build checks each keyword's name, type and range."""
    if class_name not in PRECONDITIONERS:
        raise CheckpointError(f"a network of class {quote(class_name)}; expected one of {', '.join(PRECONDITIONERS)}")
    for key, value in init_kwargs.items():
        if not isinstance(key, str):
            raise CheckpointError("a keyword that is not text")
        if isinstance(value, dict) or (isinstance(value, list | tuple) and len(value) > MAX_LIST):
            raise CheckpointError(f"keyword {quote(key)} is too long; expected at most {MAX_LIST} values")
    levels, blocks = init_kwargs.get("channel_mult", []), init_kwargs.get("num_blocks", 0)
    # every block has at least eight tensors, so this never refuses a real network
    if isinstance(levels, list | tuple) and isinstance(blocks, int) and len(levels) * blocks > max(num_tensors, 1):
        raise CheckpointError(f"its keywords imply more layers than its {num_tensors} tensors")


def compare_shapes(wanted: Mapping[str, Shape], stored: Mapping[str, Shape]) -> None:
    """One line for the first difference between what the keywords imply and what the file holds."""
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise CheckpointError(f"misses {len(missing)} of {len(wanted)} tensors, the first is {quote(missing[0])}")
    extra = [name for name in stored if name not in wanted]
    if extra:
        raise CheckpointError(f"holds {len(extra)} tensors too many, the first is {quote(extra[0])}")
    for name, shape in wanted.items():
        if tuple(stored[name]) != shape:
            raise CheckpointError(f"{quote(name)} has shape {list(stored[name])}; its keywords imply {list(shape)}")
