"""attention_levels(): where a network attends, in words for summaries."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

from edm_fast.networks._precond import unet_class


def attention_levels(net: torch.nn.Module) -> str:
    """The levels whose blocks attend: "16x16; middle block: 8x8".

    As published, blocks attend where a level has exactly a size listed in attn_resolutions, and the middle block, at
    the lowest level, always does if it is wide enough for a head. Where that is all, the text says why: "nowhere but in
    the middle block, 7x7 (levels are 28, 14, 7; listed: 16)".
    """
    matches = (re.search(r"\b(?:enc|dec)\.(\d+)x\1_(\w+)\.(\w+)", name) for name in net.state_dict())
    layers = [match.groups() for match in matches if match]
    attending = [(f"{size}x{size}", block) for size, block, layer in layers if layer in ("qkv", "attn_qkv")]
    middle = next((size for size, block in attending if block == "in0"), None)
    if sizes := dict.fromkeys(size for size, block in attending if block != "in0"):
        return ", ".join(sizes) + (f"; middle block: {middle}" if middle else "")
    levels = ", ".join(dict.fromkeys(size for size, _, _ in layers))
    listed = ", ".join(map(str, _listed(net))) or "none"
    return f"nowhere{f' but in the middle block, {middle}' if middle else ''} (levels are {levels}; listed: {listed})"


def _listed(net: torch.nn.Module) -> list[int]:
    """attn_resolutions: as arguments, or the default of the kind of network."""
    settings: dict[str, Any] = getattr(net, "init_kwargs", {})
    default = inspect.signature(unet_class(type(net), settings)).parameters["attn_resolutions"].default
    return list(settings.get("attn_resolutions", default))
