"""Every convolution of the networks, at batch 64 in float16: cuDNN alone, cuDNN and the tail in one pass or several,
Winograd (with early launches, too), the kernel in Gluon, the direct one in many blocks.

A row has TFLOP/s, and the best blocks, which go to kernels/tuned-CHIP.json. A result that is not cuDNN's within
rounding has no time.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast import backend, timing
from edm_fast.evaluation import _networks, bench
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.plan import _gpu_convolutions
from edm_fast.plan._batches import shapes_of
from edm_fast.plan._capture import Captured
from edm_fast.plan._trace import trace

SHARED = 227 * 1024  # bytes of a multiprocessor that a block may have: of an H100 or H200
TILES = ((128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (128, 64, 4), (64, 128, 4))
TILES += ((64, 64, 4),)
CALLS, REPLAYS = 10, 5


class Layer(NamedTuple):
    """Images of a convolution, its sizes, and how often a network has it."""

    n: int
    c: int
    h: int
    w: int
    outputs: int
    kernel: int
    count: int = 1

    def name(self) -> str:
        where = f"{self.n}x{self.h}x{self.w}, {self.count} times"
        return f"{self.kernel}x{self.kernel}, {self.c} to {self.outputs} at {where}"

    def flops(self) -> int:
        return 2 * self.n * self.h * self.w * self.c * self.outputs * self.kernel**2


def layers(network: str, batch: int) -> list[Layer]:
    """Those of a network, the one that takes most of it first."""
    net = _networks.open_network(network)
    example = _networks.inputs(net, batch, 0.5)
    inputs = {"x": example.x, "noise_labels": torch.zeros(batch)}
    inputs |= {"class_labels": example.labels} if example.labels is not None else {}
    return layers_of(trace(net.model, dict(shapes_of(inputs))).nodes)


def layers_of(nodes: Iterable[Any]) -> list[Layer]:
    """The convolutions among calls."""
    found = Counter(
        Layer(*node.args.x.shape, node.args.weight.shape[0], node.args.weight.shape[-1])
        for node in nodes
        if isinstance(node.args, Conv2dArgs)
    )
    every = [layer._replace(count=count) for layer, count in found.items()]
    return sorted(every, key=lambda layer: -layer.flops() * layer.count)


def blocks(layer: Layer, quick: bool) -> Iterator[Any]:
    """Tiles, stages and parts of the sum that fit, the model's own choice first."""
    from edm_fast.kernels import _conv2d_blocks as model

    pixels, taps = layer.n * layer.h * layer.w, layer.kernel**2
    own = model.blocks(pixels, layer.outputs, layer.c, taps, torch.float16)
    yield own
    k = model.depth(layer.c, taps, 2, False)
    for (m, n, warps), stages in itertools.product(TILES, (3, 4, 5)):
        n = min(n, max(16, 1 << (layer.outputs - 1).bit_length()))
        splits = own.splits if (own.m, own.n) == (m, n) else 1
        found = model.Blocks(m, n, k, warps, stages, splits)
        if found != own and (m + n) * k * 2 * stages <= SHARED and not quick:
            yield found


@functools.cache
def memory(device: torch.device) -> Captured:
    """A graph whose memory the others use, one after the other."""
    return Captured(functools.partial(torch.zeros, 1, device=device), device)


def timed(call: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    """Seconds of one call, by graphs of several where there are any, and the result of the last one: in a graph kernels
    follow each other without a gap, as they do in plans."""
    last: list[torch.Tensor] = []

    def several() -> None:
        for _ in range(CALLS if device.type == "cuda" else 1):
            last.clear()  # the next result may come to the same memory
            last.append(call())

    if device.type != "cuda":
        return min(timing.by_turns({"": several}, 2)[""]), last[0]
    graph = Captured(several, device, beside=memory(device))
    return min(timing.gpu_clock(graph, 1) for _ in range(REPLAYS)) / CALLS, last[0]


def measure(
    layer: Layer,
    device: torch.device,
    quick: bool,
    ceiling: float,
    tried: Collection[str] | None = None,
    told: Callable[[str, bool], None] = lambda way, works: None,
) -> dict[str, Any]:
    """TFLOP/s of each way, the best blocks by their key, faults of blocks; `tried`: of the ways that plans take once
    they are proved, those to measure (None: all). Of each of these `told` hears before it runs that it does not work,
    as it may never end, and afterwards whether it does."""
    from edm_fast.kernels import _conv2d_tuned, conv2d

    tried = _conv2d_tuned.PROVED if tried is None else tried

    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=generator, device=device).half()
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    n, c, h, w, outputs, kernel, _ = layer
    x, weight, bias = drawn(n, c, h, w), drawn(outputs, c, kernel, kernel) / (c * kernel**2) ** 0.5, drawn(outputs)
    residual, padding = drawn(n, outputs, h, w), kernel // 2
    args = Conv2dArgs(x, weight, bias, None, residual, 0.5)
    layouts = functools.cache(lambda layout: _gpu_convolutions.pack(weight, layout, x.dtype))
    packed, want = layouts("packed"), backend.ops()["conv2d"].reference(args).float()
    rates, faults = {}, {}
    best: tuple[float, Any] = (0.0, None)
    rates["cudnn"] = layer.flops() / timed(functools.partial(F.conv2d, x, weight, padding=padding), device)[0] / 1e12
    calls: dict[str, Callable[[], torch.Tensor]]
    calls = {"cudnn+passes": functools.partial(backend.ops()["conv2d"].reference, args)}
    for way in _gpu_convolutions.ways(args):
        if way.name not in ("fused", *_conv2d_tuned.PROVED):
            calls[way.name] = functools.partial(way.run, lambda weight, layout: layouts(layout), args)
    if "boxes" in tried and conv2d.boxes_reason(x, weight, padding, proved=True) is None:
        calls["boxes"] = functools.partial(conv2d.in_boxes, x, packed, bias[None], residual, 0.5, padding)
    if "winograd-early" in tried and "winograd" in calls and conv2d.early_reason(device, proved=True) is None:
        calls["winograd-early"] = functools.partial(calls["winograd"], early=True)
    plans = {}
    for plan in blocks(layer, quick):
        name = f"{plan.m}x{plan.n}x{plan.k}, {plan.warps} warps, {plan.stages} stages, {plan.splits} parts"
        plans[name] = plan
        calls[name] = functools.partial(conv2d.forward, x, packed, bias[None], residual, 0.5, padding, plan=plan)

    def check(found: torch.Tensor, budget: float) -> None:
        error = (found.float() - want).abs().max() / want.abs().max()
        if not error < budget:
            raise ArithmeticError(f"its error is {error:.1e}")

    for name, call in calls.items():
        if name in _conv2d_tuned.PROVED:
            told(name, False)
        try:
            budget = 5e-3 if name in plans else 2e-2
            check(call(), budget)
            time, last = timed(call, device)
            check(last, budget)
            rates[name] = layer.flops() / time / 1e12
        except Exception as error:
            faults[name] = bench.failure(error)
            continue
        if name in _conv2d_tuned.PROVED:
            told(name, True)
        if name in plans and rates[name] > best[0]:
            best = rates[name], plans[name]
    found: dict[str, Any] = {"tflops": rates, "faults": faults}
    if best[1] is not None:
        plan = best[1]
        found |= {"best": f"{best[0]:.0f}", "share": best[0] * 1e12 / ceiling}
        sizes = _conv2d_tuned.key(n * h * w, outputs, c, kernel**2, 1, x.dtype)
        found["tuned"] = {sizes: [plan.m, plan.n, plan.k, plan.warps, plan.stages, plan.splits]}
    return found
