"""What a training step should take on a GPU: forward and backward of each call of a network under autocast, by
products, bytes and passes, and Adam. Nothing here is measured.

Convolutions are cuDNN's, their tails in one pass or in one for each term; all else is on the kernels. Products backward
are twice those of the forward. Python launches kernels one by one: a step takes no less than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import _gpu_model as model
from _gpu_model import ASSUMED, SIZE, Chip, Convolution

from edm_fast.ops.attention import AttentionArgs
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.plan._graph import Node

Cost = tuple[float, int]  # seconds on the GPU, launches


def added(*costs: Cost) -> Cost:
    return sum(seconds for seconds, _ in costs), sum(count for _, count in costs)


def passed(chip: Chip, images: float, size: float, launches: int = 1) -> Cost:
    """Passes over so many images of `size` bytes in all."""
    return model.moved(chip, images * size, size), launches


def convolution(chip: Chip, args: Conv2dArgs, one_pass: bool) -> Cost:
    """Forward: casts of the weight, products, tail. Backward: that of the tail, two products, casts."""
    (n, c, _, _), (outputs, _, kernel, _), (h, w) = args.x.shape, args.weight.shape, args.size()
    layer = Convolution(n, c, h, w, outputs, kernel)
    terms = [term is not None for term in (args.bias, args.emb)]
    rows, scaled, residual = sum(terms), args.scale != 1.0, args.residual is not None
    one_pass = one_pass and rows + scaled + residual > 1
    size, weight = layer.bytes_out(), math.prod(args.weight.shape)
    image = n * c * h * w * SIZE
    products = layer.flops() / chip.convolutions + ASSUMED["start"] / chip.rhythm()
    slower = layer.flops() / chip.convolutions / ASSUMED["weight gradient"] + ASSUMED["start"] / chip.rhythm()
    whole = model.moved(chip, image + size, size)
    convolved = added((max(products, whole), 1), (max(products, whole), 1), (max(slower, whole), 1))
    casts = passed(chip, 6 + (6 if one_pass else 0) + 6, weight, 3 if one_pass else 2)  # bytes, of the gradient's too
    if one_pass:
        tail = added(passed(chip, 2 + residual, size), passed(chip, 1 + scaled, size))
    else:
        forward = [passed(chip, 2, size)] * (rows + scaled) + [passed(chip, 3, size)] * residual
        tail = added(*forward, *[passed(chip, 1, size)] * rows, *[passed(chip, 2, size)] * scaled)
    return added(convolved, casts, tail)


def call(chip: Chip, node: Any, one_pass: bool) -> Cost:
    """Forward and backward of a call."""
    args = node.args
    if isinstance(args, Conv2dArgs):
        return convolution(chip, args, one_pass)
    if isinstance(args, GroupNormSiluArgs):
        n, c, *space = args.x.shape
        size = n * c * math.prod(space) * SIZE
        return added((model.norm(chip, n, c, math.prod(space)) - ASSUMED["launch"], 1), passed(chip, 5, size, 3))
    if isinstance(args, AttentionArgs):
        n, channels, h, w = args.qkv.shape
        once = model.attended(chip, n, args.num_heads, channels // 3 // args.num_heads, h * w)
        return once * (1 + ASSUMED["attention backward"]), 6
    if getattr(node.function, "__name__", "") in ("chunk", "__getitem__"):
        return 0.0, 0
    sizes = sum(math.prod(v.shape) for v in (*node.inputs(), *node.outputs))
    times = 2 if isinstance(args, UpfirdnArgs) or getattr(node.function, "__name__", "") == "cat" else 3
    return times * sizes * SIZE / chip.memory, times


def step(chip: Chip, nodes: Iterable[Node], parameters: int, one_pass: bool = True) -> dict[str, float]:
    """Seconds: of convolutions, of all other calls, of Adam; of launches by Python; what the step takes."""
    by_kind = {"convolutions": (0.0, 0), "others": (0.0, 0)}
    for node in nodes:
        kind = "convolutions" if isinstance(node.args, Conv2dArgs) else "others"
        by_kind[kind] = added(by_kind[kind], call(chip, node, one_pass))
    by_kind["Adam"] = ASSUMED["Adam"] * parameters * 4 / chip.memory, 40
    seconds, launches = added(*by_kind.values())
    found = {kind: s for kind, (s, _) in by_kind.items()}
    return {**found, "Python": launches * ASSUMED["eager"], "step": max(seconds, launches * ASSUMED["eager"])}
