"""What a GPU should need, predicted without one: `python benchmarks/gpu_predict.py` prints the tables in Markdown.

The prediction of networks is for half precision inside of a CUDA graph, for an H200 and an A100: each convolution by
each way, with the norm before it and its tail, then the least of each. It goes by bytes, by products, and by the
instructions that the tests counted in the compiled kernels (tests/kernels/resources.json); `_gpu_model` has the rest.

So are training steps (`_gpu_training`), sampling, and the rows of the sweep.

`--write` keeps the numbers in benchmarks/results/predicted-gpu.json, which `make gpu-report` prints beside what it
measures: seconds, of the sweep TFLOP/s; `--chip`, `--network` and `--batch` ask for one place alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _gpu_model as model  # noqa: E402
import _gpu_sweep  # noqa: E402
import _gpu_training  # noqa: E402
from _gpu_model import CHIPS, Chip, Convolution  # noqa: E402
from _gpu_places import ADM, DDPMPP, EDM2, SWEPT  # noqa: E402

from edm_fast import cases  # noqa: E402
from edm_fast.errors import near  # noqa: E402
from edm_fast.networks import PRESETS, preset  # noqa: E402
from edm_fast.ops.attention import AttentionArgs  # noqa: E402
from edm_fast.ops.conv2d import Conv2dArgs  # noqa: E402
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs  # noqa: E402
from edm_fast.ops.pixel_norm import PixelNormArgs  # noqa: E402
from edm_fast.ops.upfirdn import UpfirdnArgs  # noqa: E402
from edm_fast.plan import _gpu  # noqa: E402
from edm_fast.plan._graph import AnyNode, Fused, Graph, Node, SeparateQKVArgs  # noqa: E402
from edm_fast.plan._trace import trace  # noqa: E402

RESULTS = Path(__file__).parent / "results/predicted-gpu.json"
PLACES = ((DDPMPP, 64), (DDPMPP, 1), (ADM, 64), (EDM2, 64))
TRAINED = (DDPMPP, 128)
STEPS, EVALUATIONS, FEW = 18, 35, 10  # Heun's steps and evaluations; those of a tuned sampler
WAYS = ("best", "direct", "boxes", "cuDNN + tail", "cuDNN + passes", "Winograd")
Seconds = dict[str, float]


def traced(network: str, batch: int) -> tuple[Graph, int]:
    """The calls of a network without numbers but those of its filters, and its parameters."""
    with torch.device("meta"):
        net: Any = preset(network).eval().requires_grad_(False)
    shapes = {"x": (batch, net.img_channels, net.img_resolution, net.img_resolution), "noise_labels": (batch,)}
    shapes |= {"class_labels": (batch, net.label_dim)} if net.label_dim else {}
    graph = trace(net.raw, shapes)
    for node in graph.nodes:
        if isinstance(node, Node) and isinstance(node.args, UpfirdnArgs):
            node.args = node.args._replace(f=binomial(node.args.f.shape[-1]))
    return graph, sum(p.numel() for p in net.parameters())


def binomial(count: int) -> torch.Tensor:
    """The filter of so many taps that networks have: [1, 1] or [1, 3, 3, 1] in both directions, of sum 1."""
    taps = torch.tensor([math.comb(count - 1, i) for i in range(count)], dtype=torch.float32)
    return torch.outer(taps, taps) / taps.sum().square()


def graph_of(network: str, batch: int) -> list[AnyNode]:
    """The nodes of a plan in half precision."""
    return [*_gpu.fused(traced(network, batch)[0], torch.float16).nodes]


def convolution_of(args: Conv2dArgs, x: Any, phases: int = 1) -> Convolution:
    n, c, h, w = x.shape
    return Convolution(n, c, h, w, args.weight.shape[0], args.weight.shape[-1], int(args.residual is not None), phases)


class Before(NamedTuple):
    """What a convolution may take in of the node before it: seconds of that alone, and of what is left of it then."""

    name: str = ""
    seconds: float = 0.0
    rest: float = 0.0


def before_of(chip: Chip, node: AnyNode) -> Before:
    first = node.first.args if isinstance(node, Fused) else None
    if isinstance(first, GroupNormSiluArgs):
        n, c, h, w = first.x.shape
        alone, statistics = (model.norm(chip, n, c, h * w, statistics_alone=part) for part in (False, True))
        return Before("norm and ", alone, statistics)
    if isinstance(first, PixelNormArgs):
        return Before("factor and SiLU and ", pixel_norm(chip, first), 2 * model.ASSUMED["launch"])
    return Before()


def pixel_norm(chip: Chip, args: PixelNormArgs) -> float:
    n, c, h, w = args.x.shape
    groups = args.groups if args.norm else None
    return model.pixel_norm(chip, n, c, h * w, groups, args.gain is not None, args.silu)


def ways(chip: Chip, c: Convolution, first: Before) -> Seconds:
    """Seconds of a convolution, by the way it is computed, and of what is before it."""
    before = first.seconds
    found = {
        "direct": before + model.direct(chip, c),
        "cuDNN + tail": before + model.library(chip, c),
        "cuDNN + passes": before + model.library(chip, c, passes=True),
    }
    if (boxes := model.boxes(chip, c)) is not None:
        found["boxes"] = before + boxes
    if c.kernel == 3 and c.phases == 1 and min(c.c, c.outputs) >= 16:
        parts = [sum(model.winograd_parts(chip, c, merged).values()) for merged in (False, True)]
        found["Winograd"] = min(before + parts[0], first.rest + parts[1]) if first.name else parts[0]
    return found


def convolution(node: AnyNode) -> Convolution | None:
    """That of a node."""
    if isinstance(node, Fused):
        first, conv = node.first.args, node.second.args
        phases = 4 if isinstance(first, UpfirdnArgs) and conv.weight.shape[-1] == 3 else 1
        return convolution_of(conv, first.x, phases)
    return convolution_of(node.args, node.args.x) if isinstance(node.args, Conv2dArgs) else None


def node_seconds(chip: Chip, node: AnyNode) -> tuple[str, Seconds]:
    """What a node is, and its seconds by the ways it can go."""
    if (c := convolution(node)) is not None:
        first = before_of(chip, node)
        return f"{first.name}convolution {c.kernel}x{c.kernel}", ways(chip, c, first)
    args = node.args
    if isinstance(args, GroupNormSiluArgs):
        n, c, h, w = args.x.shape
        return "norm", {"": model.norm(chip, n, c, h * w)}
    if isinstance(args, PixelNormArgs):
        return "norm" if args.norm else "factor and SiLU", {"": pixel_norm(chip, args)}
    if isinstance(args, (SeparateQKVArgs, AttentionArgs)):
        n, channels, h, w = args.qkv.shape
        return "attention", {"": model.attended(chip, n, args.num_heads, channels // 3 // args.num_heads, h * w)}
    sizes = [math.prod(value.shape) for value in node.inputs()], [math.prod(value.shape) for value in node.outputs]
    name = getattr(node.function, "__name__", "")
    if name in ("chunk", "__getitem__"):
        return "views", {"": 0.0}
    kind = "resampling" if isinstance(args, UpfirdnArgs) else "concatenation" if name == "cat" else "vectors"
    return kind, {"": model.resampled(chip, sum(sizes[0]), sum(sizes[1]))}


def network(chip: Chip, nodes: list[AnyNode]) -> tuple[Seconds, Seconds, Seconds]:
    """Seconds by way; of the best way by kind of node; of the 3x3 convolutions that Winograd takes, by way."""
    by_way, by_kind, apart = (defaultdict(float) for _ in range(3))
    for node in nodes:
        kind, found = node_seconds(chip, node)
        best = min(found.values())
        by_kind[kind] += best
        for way in WAYS:
            fallback = found.get("cuDNN + tail", best)
            by_way[way] += best if way == "best" or len(found) == 1 else found.get(way, fallback)
            if "Winograd" in found:
                apart[way] += best if way == "best" else found.get(way, fallback)
    return dict(by_way), dict(by_kind), dict(apart)


def op_seconds(chip: Chip) -> Seconds:
    """Of the Triton kernels on the layers that `make gpu-report` measures, by the names of its rows."""

    def make(*shape: int, **layout: Any) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    found = {}
    for op, case in ((op, case) for op, some in cases.LARGE.items() for case in some):
        args, kwargs = case.build(make)
        x = args[0]
        if op == "conv2d":
            found[f"{op}, {case.name}"] = model.direct(chip, Convolution(*x.shape, args[1].shape[0], args[1].shape[-1]))
        elif op == "group_norm_silu":
            found[f"{op}, {case.name}"] = model.norm(chip, *x.shape[:2], math.prod(x.shape[2:]))
        elif op == "pixel_norm":
            found[f"{op}, {case.name}"] = model.pixel_norm(chip, *x.shape[:2], math.prod(x.shape[2:]), 1, True, True)
        elif op == "attention":
            n, channels, h, w = x.shape
            seconds = model.attended(chip, n, args[1], channels // 3 // args[1], h * w)
            found[f"{op}, {case.name}"] = seconds + model.resampled(chip, x.numel(), x.numel())  # q, k, v taken apart
        elif op == "upfirdn":
            outputs = x.numel() * 4 if kwargs.get("up", 1) > 1 else x.numel() // 4
            found[f"{op}, {case.name}"] = model.resampled(chip, x.numel(), outputs)
    return found


def sampled(network: float, evaluations: int) -> float:
    """Seconds of a sampler whose network takes so many; its state is small, and its steps are graphs."""
    return evaluations * (network + model.ASSUMED["solver"] * model.ASSUMED["launch"])


def sweep(chip: Chip, found: list[_gpu_sweep.Layer]) -> dict[str, float]:
    """TFLOP/s of the rows of the sweep, by layer and way; there is a bias, a residual and a scale, and no norm."""
    rates = {}
    for layer in found:
        c = Convolution(*layer[:6], added=1)
        bare = model.library(chip, c) - model.moved(chip, 3 * c.bytes_out(), c.bytes_out()) - model.ASSUMED["launch"]
        names = {
            "direct": "fused",
            "boxes": "boxes",
            "cuDNN + tail": "tail",
            "cuDNN + passes": "cudnn+passes",
            "Winograd": "winograd",
        }
        times = {"cudnn": bare} | {names.get(way, way): s for way, s in ways(chip, c, Before()).items()}
        rates |= {f"sweep, {layer.name()}, {way}": c.flops() / s / 1e12 for way, s in times.items()}
    return rates


def layers(chip: Chip, nodes: list[AnyNode], most: int = 5) -> list[list[str]]:
    """The 3x3 convolutions that take most of a network, in microseconds."""
    every = [(c, before_of(chip, node)) for node in nodes if (c := convolution(node)) and c.kernel == 3]
    counts = Counter(found for found in every if found[0].phases == 1)
    rows = []
    for (c, first), count in sorted(counts.items(), key=lambda item: -item[0][0].flops() * item[1])[:most]:
        name = f"{c.c} to {c.outputs} at {c.h}x{c.w}{', residual' if c.added else ''} ({count})"
        found, parts = ways(chip, c, first), model.winograd_parts(chip, c, False)
        times = [f"{found[way] * 1e6:.0f}" if way in found else "" for way in WAYS[1:]]
        of_winograd = ", ".join(f"{seconds * 1e6:.0f}" for seconds in parts.values())
        rows.append([chip.name, name, f"{c.flops() / 1e9:.1f}", *times, of_winograd])
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def trained(chips: dict[str, Chip], known: dict[str, dict[str, float]]) -> str:
    """The table of training steps; what is predicted of ours goes to `known`."""
    graph, parameters = traced(*TRAINED)
    rows = []
    for name, chip in chips.items():
        for one_pass in (True, False):
            found = _gpu_training.step(chip, graph.nodes, parameters, one_pass)
            tail = "one pass" if one_pass else "a pass for each term"
            rows.append([f"{TRAINED[0]}, {TRAINED[1]}, {chip.name}", tail, *map(milliseconds, found.values())])
            if one_pass:
                known[name][f"{TRAINED[0]}, batch {TRAINED[1]}, training"] = found["step"]
    return table(["place", "tails", *found], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=[*CHIPS], help="that one alone")
    parser.add_argument("--network", help="a preset alone, with --batch")
    parser.add_argument("--batch", type=int, default=64, help="images [default: %(default)s]")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    args = parser.parse_args()
    if args.network not in (None, *PRESETS):
        parser.error(f"--network={args.network} is no preset{near(args.network, PRESETS)}; such as {ADM}")
    if args.batch < 1:
        parser.error(f"--batch={args.batch}; expected 1 or more")
    places = [(args.network, args.batch)] if args.network else [*PLACES]
    chips = {name: chip for name, chip in CHIPS.items() if args.chip in (None, name)}
    known: dict[str, dict[str, float]] = {name: op_seconds(chip) for name, chip in chips.items()}
    every = sorted({op for found in known.values() for op in found})
    rows = [[op, *(f"{known[name][op] * 1e6:.0f}" for name in chips)] for op in every]
    totals, kinds, ratios, large, samples = [], [], [], [], []
    for net, batch in places:
        nodes = graph_of(net, batch)
        for name, chip in chips.items():
            by_way, by_kind, apart = network(chip, nodes)
            large += layers(chip, nodes) if batch > 1 else []
            where = f"{net}, {batch}, {chip.name}"
            known[name][f"{net}, batch {batch}"] = by_way["best"]
            known[name][f"{net}, batch {batch}, sampling"] = sampled(by_way["best"], EVALUATIONS)
            times = [sampled(by_way["best"], count) for count in (EVALUATIONS, FEW)]
            samples.append([where, *(milliseconds(t) for t in times), *(f"{batch / t:.0f}" for t in times)])
            totals.append([where, *(milliseconds(by_way[way]) for way in WAYS)])
            kinds.append([where, ", ".join(f"{kind} {milliseconds(s)}" for kind, s in sorted(by_kind.items()) if s)])
            others = [apart["cuDNN + passes"], apart["cuDNN + tail"], apart["direct"]]
            ratios.append([where, *(f"{other / apart[way]:.2f}" for way in ("Winograd", "best") for other in others)])
    against = ["cuDNN + passes", "cuDNN + tail", "direct"]
    print("Milliseconds of an evaluation, all layers by one way:\n\n" + table(["place", *WAYS], totals))
    print("Of the best, by kind of node:\n\n" + table(["place", "milliseconds"], kinds))
    head = [f"{way} over {other}" for way in ("Winograd", "best") for other in against]
    print("The 3x3 layers with their norms, speed:\n\n" + table(["place", *head], ratios))
    head = ["chip", "layer (times in its network)", "GFLOP", *WAYS[1:], "Winograd: to tiles, products, back, launches"]
    print("The largest of them, with norm and tail, microseconds:\n\n" + table(head, large))
    print("Microseconds of ops, batch 64, float16:\n\n" + table(["op", *(c.name for c in chips.values())], rows))
    print("Assumed, not counted: " + ", ".join(f"{key} {value:g}" for key, value in model.ASSUMED.items()) + ".")
    head = [f"{count} evaluations, {unit}" for unit in ("ms", "images/s") for count in (EVALUATIONS, FEW)]
    print("\nSampling by Heun and by a tuned sampler of few evaluations:\n\n" + table(["place", *head], samples))
    if not args.network:
        print("A training step, milliseconds; `Python`: to launch its kernels:\n\n" + trained(chips, known))
        for place in SWEPT:
            swept = _gpu_sweep.layers_of(traced(*place)[0].nodes)
            for name, chip in chips.items():
                known[name] |= sweep(chip, swept)
    if args.write:
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
