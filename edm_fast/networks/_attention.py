"""attention_levels(): where a network attends, in words for summaries."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch


def attention_levels(network: torch.nn.Module | Iterable[str]) -> str:
    """The levels whose blocks attend, e.g. "16x16, 8x8 (middle block only); levels: 32x32, 16x16, 8x8".

    `network`: a network, or the names of its tensors. As published, blocks attend where a level has exactly a size of
    attn_resolutions; the first block of the decoder, at the lowest level, always does if it is wide enough for a head.
    """
    names = network.state_dict() if isinstance(network, torch.nn.Module) else network
    matches = (re.search(r"\b(?:enc|dec)\.(\d+)x\1_(\w+)\.(\w+)", name) for name in names)
    blocks = [match.groups() for match in matches if match]
    sizes = sorted({int(size) for size, _, _ in blocks}, reverse=True)
    attending = {(int(size), block) for size, block, layer in blocks if layer == "qkv"}
    levels = []
    for size in sizes:
        roles = {block for level, block in attending if level == size}
        if roles:
            levels.append(f"{size}x{size}{' (middle block only)' if roles == {'in0'} else ''}")
    return f"{', '.join(levels) or 'none'}; levels: {', '.join(f'{size}x{size}' for size in sizes) or 'none'}"
