"""What a user should be told about a stored network, though it can be read: it may not be the one its author had.

A stored object holds its attributes and the source of its class. Published readers run that source; this package uses
classes of its own, and compares what can be compared without running anything: the attributes with those of the network
it builds, and the loss with the network. The text of the source cannot be judged: no digest of a published one is known
here, so a text that is neither empty nor this package's own line (see `export`) is said.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

from edm_fast import networks
from edm_fast.checkpoint._records import Persistent, quote

OWN_SOURCE = re.compile(r"from edm_fast\.[\w.]+ import \w+\n")
# attributes that are keywords of the constructor as well, and may have been set after it
SETTABLE = {"use_fp16", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2"}
# what has no part in the images: the mode, torch's own, and the type that accelerate() has chosen
NO_MATTER = {"training", "use_fp16", "call_super_init", "dump_patches", "_is_full_backward_hook", "_version"}


class CheckpointWarning(UserWarning):
    """A checkpoint that can be read, but may not be what its reader takes it for."""


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, bool | int | float)


def differ(a: float, b: float) -> bool:
    """Beyond the rounding of a number that was computed in another way."""
    return not math.isclose(a, b, rel_tol=1e-6)


def changed_attributes(record: Persistent, init_kwargs: dict[str, Any]) -> list[str]:
    """Attributes set after construction are those the network works with: they become its keywords."""
    said = []
    parameters = inspect.signature(getattr(networks, record.class_name)).parameters
    for name in sorted(SETTABLE & parameters.keys() & record.state.keys()):
        value, built = record.state[name], init_kwargs.get(name, parameters[name].default)
        if is_number(value) and is_number(built) and differ(value, built):
            said.append(f"its {name} was built as {built} and later set to {value}, which is used")
            init_kwargs[name] = value
    return said


def sources(class_name: str, texts: set[str]) -> list[str]:
    """Said of classes whose stored source is not known to be that of the network built here."""
    others = sorted(text for text in texts if text and not OWN_SOURCE.fullmatch(text))
    if not others:
        return []
    digests = ", ".join(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] for text in others[:4])
    return [
        f"its network source (sha256 {digests}) is not known to edm-fast and is not run: edm-fast's own {class_name} "
        "is used; if the source was changed, the images will be others"
    ]


def loss(stored: Any, class_name: str, init_kwargs: Mapping[str, Any]) -> list[str]:
    """Said of a loss that was computed for another sigma_data than the network's."""
    default = inspect.signature(getattr(networks, class_name)).parameters.get("sigma_data")
    theirs = stored.state.get("sigma_data") if isinstance(stored, Persistent) else None
    if default is None or not is_number(theirs):
        return []
    own = init_kwargs.get("sigma_data", default.default)
    if not is_number(own) or not differ(theirs, own):
        return []
    return [f"its loss ({quote(stored.class_name)}) has sigma_data {theirs:g}, its network {own:g}"]


def other_attributes(net: torch.nn.Module, stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Numbers and texts among the attributes of `net`'s modules that are others in `stored` (by module name)."""
    found = []
    for where, module in net.named_modules():
        theirs = stored.get(where, {})
        for name, value in vars(module).items():
            other = theirs.get(name, value)
            if name in NO_MATTER:
                continue
            if is_number(value) and is_number(other):
                changed = differ(other, value)
            else:
                changed = isinstance(value, str) and isinstance(other, str) and other != value
            if changed:
                path = quote(f"{where}.{name}" if where else name, 100)
                found.append(f"its {path} is {str(other)[:40]!a}; a network of its keywords has {value!r}")
    return found
