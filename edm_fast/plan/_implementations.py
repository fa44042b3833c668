"""The candidates of a node on a GPU, by name: the implementations of its op, and those that only a plan can use.

The latter have weights packed beforehand, merge a convolution with the norm or upsampling before it, or leave the
statistics of an image for the norm after it, which then need not read the image for them first. An implementation takes
the node's `args` with images channels last; one that needs statistics takes `stats` too, mean and 1/std (2, N, groups)
of its norm's image, and one that leaves them gives them after its result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from edm_fast import backend
from edm_fast.ops.attention import AttentionArgs
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.ops.pixel_norm import PixelNormArgs
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.plan._gpu_convolutions import Pack, Way, kernels, tail, ways
from edm_fast.plan._graph import AnyNode, Fused, LinearArgs, Node, SeparateQKVArgs, TorchArgs, Value, attention_of
from edm_fast.plan._select import Candidate

Statistics = tuple[int, float]  # groups and eps of the norm they are for


def _norms() -> Any:
    from edm_fast.kernels import group_norm_silu

    return group_norm_silu


def takes_images(node: AnyNode) -> bool:
    """Whether the node's arguments, vectors too, have the dtype of its images."""
    return not isinstance(node.args, (TorchArgs, LinearArgs))


def exact(node: AnyNode) -> list[Candidate]:
    """The one candidate that gives the network's own bits."""
    assert isinstance(node, Node)
    if isinstance(node.function, backend.Op):
        return [Candidate("reference", node.function.reference)]
    return [Candidate("torch", node.run)]


def candidates(node: AnyNode, args: Any, packed: Pack, wanted: Statistics | None, available: bool) -> list[Candidate]:
    """args: of the node, with tensors; wanted: the statistics that norms after it could use; available: whether those
    of its own norm's image are there."""
    if isinstance(node, Fused):
        return _of_fused(node, args[0], args[1], packed, wanted, available)
    if isinstance(args, SeparateQKVArgs):
        triton = backend.ops()["attention"].implementations["triton"]
        able = triton.reason is not None and triton.reason(AttentionArgs(*args)) is None
        return [Candidate("sdpa", node.function), *([Candidate("triton", _separate_triton)] if able else [])]
    if isinstance(node.function, backend.Op):
        return _of_op(node.function, args, packed, wanted, available)
    return [Candidate("torch", node.run)]


def _of_op(op: Any, args: Any, packed: Pack, wanted: Statistics | None, available: bool) -> list[Candidate]:
    able = [i for i in op.reference_first() if i.reason is None or i.reason(args) is None]
    found = [Candidate(i.name, i.forward) for i in able]
    if isinstance(args, AttentionArgs):
        found[0] = Candidate("sdpa", _sdpa)
    if isinstance(args, Conv2dArgs):
        # those of a GPU are ways of a plan, too, which prepares their weights once
        found = [candidate for candidate in found if candidate.name not in ("triton", "cuda")]
        triton = op.implementations["triton"]  # which clips in plans alone
        if triton.reason is not None and triton.reason(args._replace(clip=None)) is not None:
            return found
        for way in ways(args):
            left = wanted if way.leaves_statistics else None
            found += _with_statistics(way.name, functools.partial(_convolution, way, packed), left)
    if isinstance(args, GroupNormSiluArgs) and available and any(i.name == "triton" for i in able):
        found.append(Candidate("apply", _normalise, needs_statistics=True, base="triton"))
    return found


def _of_fused(
    node: Fused, first: Any, second: Any, packed: Pack, wanted: Statistics | None, available: bool
) -> list[Candidate]:
    before = _of_op(node.first.function, first, packed, None, available)
    after = _of_op(node.second.function, second, packed, wanted, False)
    found = []
    for a, b in _pairs(before, after):
        base = f"{a.base or a.name}+{b.base or b.name}" if a.base or b.base else ""
        run = functools.partial(_in_turn, a.implementation, b.implementation)
        found.append(
            Candidate(f"{a.name}+{b.name}", run, 0.0, 0, a.needs_statistics, b.leaves_statistics, base, (a, b))
        )
    if len(after) == 1:
        return found
    if node.rule == "upsampling":
        three = second.weight.shape[-1] == 3
        return found + (_with_statistics("merged", functools.partial(_upsampled, packed), wanted) if three else [])
    for way in ways(second, first):
        run, left = functools.partial(_normalised, way, packed), wanted if way.leaves_statistics else None
        for needs in sorted({candidate.needs_statistics for candidate in before}) if way.merged else ():
            found += _with_statistics(way.merged, run, left, needs)
    return found


def _with_statistics(
    name: str, run: Callable[..., Any], wanted: Statistics | None, needs: bool = False
) -> list[Candidate]:
    """run(None, args, ...), and run(wanted, args, ...), which leaves the statistics that are wanted."""
    found = []
    for left in dict.fromkeys((None, wanted)):
        full = f"{'apply+' if needs else ''}{name}{'' if left is None else '+statistics'}"
        base = "" if full == name else name
        found.append(Candidate(full, functools.partial(run, left), 0.0, 0, needs, left is not None, base))
    return found


def _pairs(before: list[Candidate], after: list[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Torch's own two, then pairs of kernels; torch's stands in for a half that has none."""
    yield before[0], after[0]
    if len(before) > 1 or len(after) > 1:
        yield from itertools.product(before[1:] or before, after[1:] or after)


def _in_turn(a: Callable[..., Any], b: Callable[..., Any], args: tuple[Any, Any], **stats: torch.Tensor) -> Any:
    first, second = args
    return b(second._replace(x=a(first, **stats)))


def _statistics(wanted: Statistics | None) -> Any:
    return None if wanted is None else kernels().Statistics(*wanted)


def _convolution(way: Way, packed: Pack, wanted: Statistics | None, args: Conv2dArgs) -> Any:
    return way.run(packed, args, statistics=_statistics(wanted))


def _normalise(args: GroupNormSiluArgs, stats: torch.Tensor) -> torch.Tensor:
    """With the statistics of x that its producer left: x is read once."""
    x, weight, bias, groups, _, scale, shift, silu = args
    return _norms().apply(x, stats, (weight, bias, scale, shift), groups, silu, last=True)


def _normalised(
    way: Way,
    packed: Pack,
    wanted: Statistics | None,
    args: tuple[GroupNormSiluArgs | PixelNormArgs, Conv2dArgs],
    stats: torch.Tensor | None = None,
) -> Any:
    """The convolution of a normalised image, or one with a factor and SiLU, which is never written."""
    norm, conv = args
    if isinstance(norm, PixelNormArgs):
        prologue = kernels().Factor(norm.gain, norm.silu)
        return way.run(packed, conv._replace(x=norm.x), prologue=prologue, statistics=_statistics(wanted))
    if stats is None:
        stats = _norms().moments(norm.x, norm.groups, norm.eps, last=True)
    mean, rstd = stats
    names = ("weight", "bias", "scale", "shift", "silu")
    prologue = kernels().Prologue(mean, rstd, **{name: getattr(norm, name) for name in names})
    return way.run(packed, conv._replace(x=norm.x), prologue=prologue, statistics=_statistics(wanted))


def _upsampled(packed: Pack, wanted: Statistics | None, args: tuple[UpfirdnArgs, Conv2dArgs]) -> Any:
    """The 3x3 convolution of an image upsampled by repetition: 16 products in place of 36, no large image."""
    up, conv = args
    weight = packed(conv.weight, "phases")
    return kernels().upsample(up.x, weight, **tail(conv), statistics=_statistics(wanted))


def _sdpa(args: AttentionArgs) -> torch.Tensor:
    """Attention by torch's fused kernels."""
    n, channels, h, w = args.qkv.shape
    pixels = args.qkv.permute(0, 2, 3, 1).reshape(n, h * w, args.num_heads, channels // (3 * args.num_heads), 3)
    return attention_of(pixels.permute(4, 0, 2, 1, 3).contiguous(), h, w)


def _separate_triton(args: SeparateQKVArgs) -> torch.Tensor:
    from edm_fast.kernels import attention as kernels

    return kernels.forward(args.qkv, args.num_heads, True)[0]


def norm_of(node: AnyNode) -> Any:
    """The arguments of the norm that a node begins with, or None."""
    args = node.first.args if isinstance(node, Fused) else node.args
    return args if isinstance(args, GroupNormSiluArgs) else None


def wanted_statistics(nodes: Sequence[AnyNode]) -> dict[Value, Statistics]:
    """Of the images that a convolution makes and a norm reads: groups and eps of the first such norm."""
    convolved = {n.output for n in nodes if isinstance((n.second if isinstance(n, Fused) else n).args, Conv2dArgs)}
    wanted: dict[Value, Statistics] = {}
    for node in nodes:
        if (norm := norm_of(node)) is not None and norm.x in convolved:
            wanted.setdefault(norm.x, (norm.groups, norm.eps))
    return wanted


def norm_with(node: AnyNode, statistics: Mapping[Value, Statistics]) -> Any:
    """The same, if these statistics of its image are those that the norm computes."""
    norm = norm_of(node)
    return norm if norm is not None and statistics.get(norm.x) == (norm.groups, norm.eps) else None


def statistics_of(image: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """(2, N, groups) float32: mean and 1 / sqrt(var + eps)."""
    var, mean = torch.var_mean(image.float().unflatten(1, (groups, -1)), (2, 3, 4), correction=0)
    return torch.stack((mean, (var + eps).rsqrt()))


def described(node: AnyNode, args: Any) -> str:
    """A call as text: shapes of tensors, other arguments as they are."""
    if not takes_images(node):
        return "torch"
    if isinstance(node, Fused):
        return f"pair ({described(node.first, args[0])}) ({described(node.second, args[1])})"
    parts = [node.function.name if isinstance(node.function, backend.Op) else "attention separate"]
    for name, value in args._asdict().items():
        if value is not None:
            shape = "x".join(map(str, value.shape)) if isinstance(value, torch.Tensor) else value
            parts.append(f"{name}={shape}")
    return " ".join(parts)
