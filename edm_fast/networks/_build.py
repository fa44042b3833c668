"""build(): a network from its class name and keywords, both possibly out of a file, so everything is checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from edm_fast.errors import UserError, near
from edm_fast.networks._edm2 import UNet
from edm_fast.networks._precond import PRECONDS, _Precond, unet_class

# far above anything published; together they may still ask for more memory than there is
_LIMITS = {
    "img_resolution": 4096,
    "img_channels": 1024,
    "label_dim": 1_000_000,
    "augment_dim": 4096,
    "model_channels": 8192,
    "channel_mult_emb": 64,
    "channel_mult_noise": 64,
    "num_blocks": 64,
    "M": 20_000,
    "channels_per_head": 8192,
    "logvar_channels": 8192,
}
# in [0, 1]
_SHARES = ("dropout", "label_dropout", "label_balance", "concat_balance", "res_balance", "attn_balance")
_MAY_BE_NONE = ("channel_mult_emb", "channel_mult_noise", "clip_act")
_MAY_BE_ZERO = ("label_dim", "augment_dim", "num_blocks")
_LISTS = {"channel_mult": int, "attn_resolutions": int, "resample_filter": float}
_FROM_PRECOND = ("img_resolution", "in_channels", "out_channels", "label_dim")


def keywords(cls: type[_Precond], unet: type[torch.nn.Module]) -> set[str]:
    """All keywords the preconditioner takes around a raw network of the class `unet`."""
    own = {name for name, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD}
    return own | (set(inspect.signature(unet).parameters) - set(_FROM_PRECOND))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _checked(name: str, value: Any, unet: type[torch.nn.Module]) -> Any:
    expected = None
    if value is None and name in _MAY_BE_NONE and unet is UNet:
        return None
    if name in _LIMITS:
        low = 0 if name in _MAY_BE_ZERO else 1
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _LIMITS[name]:
            expected = f"an integer from {low} to {_LIMITS[name]}"
    elif name in _LISTS:
        ok = isinstance(value, (list, tuple)) and len(value) <= 64
        if not ok or not all(_is_number(v) and (_LISTS[name] is float or isinstance(v, int)) for v in value):
            expected = f"a list of at most 64 {'numbers' if _LISTS[name] is float else 'integers'}"
        elif name != "attn_resolutions" and not value:
            expected = "a list of at least one value"
        elif name == "channel_mult" and not 1 <= min(value) <= max(value) <= 64:
            expected = "multipliers from 1 to 64"
    elif name == "use_fp16":
        if not isinstance(value, (bool, int)):
            expected = "true or false"
        value = bool(value)
    elif name.endswith("_type"):
        if not isinstance(value, str):
            expected = "a name"
    elif name in _SHARES:
        if not _is_number(value) or not 0 <= value <= 1:
            expected = f"a {'probability' if name.endswith('dropout') else 'number'} from 0 to 1"
    elif not _is_number(value):
        expected = "a number"
    if expected is not None:
        raise UserError(f"network keyword {name}={str(value)[:80]!r}; expected {expected}")
    return list(value) if name in _LISTS else value


def build(class_name: str, kwargs: Mapping[str, Any]) -> _Precond:
    """A freshly initialised preconditioner with its network, e.g. build("EDMPrecond", net.init_kwargs).

    Raises UserError for unknown classes or keywords and for values of a wrong type or an absurd size.
    """
    if class_name not in PRECONDS:
        raise UserError(f"unknown network class {str(class_name)[:80]!r}; expected one of {', '.join(PRECONDS)}")
    cls = PRECONDS[class_name]
    unet = unet_class(cls, kwargs)
    unknown = sorted(str(name)[:80] for name in set(kwargs) - keywords(cls, unet))
    if unknown:
        hint = near(unknown[0], keywords(cls, unet))
        raise UserError(f"{class_name} with {unet.__name__} takes no keyword {', '.join(unknown)}{hint}")
    required = [
        n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    missing = [name for name in required if name not in kwargs]
    if missing:
        raise UserError(f"network keyword {', '.join(missing)} is missing")
    return cls(**{name: _checked(name, value, unet) for name, value in kwargs.items()})
