"""The ways a node of a GPU plan can run, by name: the implementations of the op, and what `_fused` adds to them.

A convolution on the fused kernel may leave the statistics of its image for the norm after it, which may take them in
place of reading the image for them first. These are ways like others: which ones go together is chosen in `_choice`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast import backend
from edm_fast.plan import _fused
from edm_fast.plan._trace import Node


@dataclasses.dataclass(frozen=True)
class Way:
    """run(...) takes the node's arguments with tensors in place of values, and gives its output."""

    run: Callable[..., Any]
    takes: bool = False  # `stats` too: mean and rstd (2, N, groups) of the image that its norm reads
    makes: bool = False  # gives the statistics of its image, after it
    plain: str = ""  # the way that is the same but for statistics


def is_op(node: Node) -> bool:
    return node.kind == "pair" or node.kind in backend.ops()


def as_written(node: Node) -> dict[str, Way]:
    """The one way of a node of the network itself, to the bit."""
    op = backend.ops().get(node.kind)
    return {"torch": Way(node.function)} if op is None else {"reference": _way(op, "reference")}


def ways(
    node: Node, kwargs: dict[str, Any], packed: _fused.Pack, asked: _fused.Asked | None, given: bool
) -> dict[str, Way]:
    """asked: the statistics that norms after it could take; given: whether those of its image could be had."""
    if node.kind == "linear":
        return {"torch": Way(_linear)}
    if not is_op(node):
        return {"torch": Way(node.function)}
    if node.kind != "pair":
        return _of_op(backend.ops()[node.kind], kwargs, packed, asked, given)
    first, second = (backend.ops()[op.name] for op in node.function)  # type: ignore[attr-defined]
    before = _of_op(first, kwargs["first"], packed, None, given)
    # reasons ask for device and dtype of x
    after = _of_op(second, {**kwargs["second"], "x": kwargs["first"]["x"]}, packed, asked, False)
    found = {}
    for a, b in itertools.product(before, after):
        takes, makes = before[a].takes, after[b].makes
        plain = f"{before[a].plain or a}+{after[b].plain or b}" if takes or makes else ""
        found[f"{a}+{b}"] = Way(functools.partial(_in_turn, before[a].run, after[b].run), takes, makes, plain)
    merged = _fused.upsampled if first.name == "upfirdn" else _fused.normalised
    if "fused" in after and (first.name != "upfirdn" or kwargs["second"]["weight"].shape[-1] == 3):
        for takes in (False, True) if "given" in before else (False,):
            for left in (None, asked) if asked is not None else (None,):
                name = f"{'given+' if takes else ''}merged{'' if left is None else '+statistics'}"
                found[name] = Way(merged(packed, left), takes, left is not None, "" if name == "merged" else "merged")
    return found


def _of_op(
    op: backend.Op, kwargs: dict[str, Any], packed: _fused.Pack, asked: _fused.Asked | None, given: bool
) -> dict[str, Way]:
    first = {"sdpa": Way(_sdpa)} if op.name == "attention" else {"reference": _way(op, "reference")}
    if "apart" in kwargs:
        plain = {name: value for name, value in kwargs.items() if name != "apart"}
        fits = _takes(op, "triton", plain)
        return {**first, "triton": Way(_fused.attention)} if fits else first
    able = {name: _way(op, name) for name in op.implementations if name != "reference" and _takes(op, name, kwargs)}
    if op.name == "conv2d" and "triton" in able:
        del able["triton"]  # the same kernel, whose weights are packed beforehand
        able["fused"] = Way(_fused.convolution(packed))
        if asked is not None:
            able["fused+statistics"] = Way(_fused.convolution(packed, asked), makes=True, plain="fused")
    if op.name == "group_norm_silu" and "triton" in able and given:
        able["given"] = Way(_fused.normalise, takes=True, plain="triton")
    return {**first, **able}


def _takes(op: backend.Op, name: str, kwargs: dict[str, Any]) -> bool:
    reason = op.implementations[name].reason
    return reason is None or reason(op.arguments(**kwargs)) is None


def _way(op: backend.Op, name: str) -> Way:
    forward = op.implementations[name].forward
    return Way(lambda **kwargs: forward(op.arguments(**kwargs)))


def _in_turn(
    a: Callable[..., Any], b: Callable[..., Any], first: dict[str, Any], second: dict[str, Any], **more: Any
) -> Any:
    return b(x=a(**first, **more), **second)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _sdpa(qkv: torch.Tensor, num_heads: int, apart: bool = False) -> torch.Tensor:
    """Attention by torch's fused kernels; `apart`: channels in the order which, head, channel (see `separate_qkv`)."""
    n, channels, h, w = qkv.shape
    head = channels // (3 * num_heads)
    pixels = qkv.permute(0, 2, 3, 1).reshape(n, h * w, channels)
    if apart:
        q, k, v = pixels.reshape(n, h * w, 3, num_heads, head).permute(2, 0, 3, 1, 4)  # each (N, heads, HW, head)
    else:
        q, k, v = pixels.reshape(n, h * w, num_heads, head, 3).permute(4, 0, 2, 1, 3).contiguous()
    a = F.scaled_dot_product_attention(q, k, v)
    return a.transpose(1, 2).reshape(n, h, w, num_heads * head).permute(0, 3, 1, 2)
