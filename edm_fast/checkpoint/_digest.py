"""A name for what a network computes: the digest of its weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def add_weights(digest: Any, net: torch.nn.Module) -> None:
    """Feed the names, types, shapes and bytes of all weights and buffers to a digest of hashlib."""
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def weights_digest(net: torch.nn.Module) -> str:
    """32 hexadecimal digits of the class of a network and all of its weights."""
    digest = hashlib.sha256(type(net).__name__.encode())
    add_weights(digest, net)
    return digest.hexdigest()[:32]
