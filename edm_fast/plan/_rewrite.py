"""Rewrites: the same computation in nodes that kernels have, or have faster; exact but for rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast.backend import Op, tensors
from edm_fast.ops.attention import AttentionArgs
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.ops.pixel_norm import PixelNormArgs
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.plan._graph import (
    AnyNode,
    Fused,
    Graph,
    LinearArgs,
    Node,
    SeparateQKVArgs,
    TorchArgs,
    Value,
    is_concatenation,
    linear,
    parts_of,
    separate_attention,
)

# what replaces a node and the next, which alone reads its output; None: they stay
Rule = Callable[[Node, Node], Sequence[AnyNode] | None]


def rewritten(graph: Graph) -> Graph:
    """The graph after every rule that both kinds of plans want."""
    graph = dataclasses.replace(graph, nodes=[as_linear(node) for node in graph.nodes])
    graph = silu_before_upsampling(scale_after_joining(separate_normalised_qkv(graph)))
    return rewrite(graph, add_bias, separate_qkv, mix_before_upsampling)


def rewrite(graph: Graph, *rules: Rule) -> Graph:
    """The graph after each rule in turn, from the first node to the last. Replacements meet the nodes after them."""
    for rule in rules:
        readers = graph.readers()
        nodes: dict[AnyNode, None] = {}
        producers: dict[Value, AnyNode] = {}
        for node in graph.nodes:
            replacement: Sequence[AnyNode] = [node]
            for first in dict.fromkeys(producers[value] for value in node.inputs() if value in producers):
                if isinstance(first, Node) and isinstance(node, Node) and readers[first.output] == [node]:
                    found = rule(first, node)
                    if found is not None:
                        del nodes[first]
                        replacement = found
                        break
            nodes |= dict.fromkeys(replacement)
            producers |= {value: new for new in replacement for value in new.outputs}
        graph = dataclasses.replace(graph, nodes=[*nodes])
    return graph


def as_linear(node: AnyNode) -> AnyNode:
    """x W, of a network's own W, as a linear layer."""
    if not isinstance(node, Node) or node.function is not torch.matmul or len(node.args.args) != 2 or node.args.kwargs:
        return node
    x, weight = node.args.args
    if isinstance(x, Value) and len(x.shape) == 2 and isinstance(weight, torch.Tensor) and weight.ndim == 2:
        return Node(linear, LinearArgs(x, weight.mT), node.outputs)
    return node


def add_bias(first: Node, second: Node) -> list[AnyNode] | None:
    """A vector, or a number, added to the product of a linear layer is its bias."""
    if not isinstance(first.args, LinearArgs) or first.args.bias is not None:
        return None
    adds = getattr(second.function, "__name__", "") in ("add", "add_", "__add__", "__iadd__")
    if not adds or not isinstance(second.args, TorchArgs) or len(second.args.args) != 2 or second.args.kwargs:
        return None
    product, bias = second.args.args
    if isinstance(bias, (int, float)):
        bias = first.args.weight.new_full((len(first.args.weight),), float(bias))
    if product is not first.output or not isinstance(bias, torch.Tensor) or bias.ndim != 1:
        return None
    return [Node(linear, first.args._replace(bias=bias), second.outputs)]


def fold_bias(first: Node, second: Node) -> list[AnyNode] | None:
    """The bias of a convolution is added to that of the linear layer which makes its embedding, once."""
    made, conv = first.args, second.args
    if not isinstance(made, LinearArgs) or not isinstance(conv, Conv2dArgs) or conv.emb is not first.output:
        return None
    if not isinstance(conv.bias, torch.Tensor):
        return None
    bias = conv.bias if made.bias is None else made.bias + conv.bias
    without = Node(second.function, conv._replace(bias=None), second.outputs)
    return [Node(first.function, made._replace(bias=bias), first.outputs), without]


def separate_qkv(first: Node, second: Node) -> list[AnyNode] | None:
    """Rows of a 1x1 convolution that makes q, k and v for attention alone are put in the order which, head, channel in
    place of head, channel, which: vectors of channels are then vectors in memory."""
    conv = first.args
    if not isinstance(conv, Conv2dArgs) or not isinstance(second.args, AttentionArgs) or conv.weight.shape[-1] != 1:
        return None
    if conv.emb is not None or conv.residual is not None:
        return None
    heads = second.args.num_heads
    bias = None if conv.bias is None else separate_rows(conv.bias, heads)
    conv = conv._replace(weight=separate_rows(conv.weight, heads), bias=bias)
    attention = Node(separate_attention, SeparateQKVArgs(first.output, heads), second.outputs)
    return [Node(first.function, conv, first.outputs), attention]


def separate_normalised_qkv(graph: Graph) -> Graph:
    """The same where q, k and v are normalised in between."""
    producers, readers = graph.producers(), graph.readers()
    new: dict[AnyNode, list[AnyNode]] = {}
    for node in graph.nodes:
        norm = producers.get(node.args.qkv) if isinstance(node.args, AttentionArgs) else None
        conv = producers.get(norm.args.x) if norm is not None and isinstance(norm.args, PixelNormArgs) else None
        if not isinstance(conv, Node) or not isinstance(norm, Node) or not isinstance(node, Node):
            continue
        heads, qkv = node.args.num_heads, norm.args
        if readers[conv.output] != [norm] or readers[norm.output] != [node] or qkv.gain is not None:
            continue
        found = separate_qkv(conv, node) if (qkv.groups, qkv.interleaved) == (heads, 3) else None
        if found is not None:
            separate = qkv._replace(groups=3 * heads, interleaved=1)
            attention = Node(separate_attention, SeparateQKVArgs(norm.output, heads), node.outputs)
            new |= {conv: [found[0]], norm: [Node(norm.function, separate, norm.outputs)], node: [attention]}
    return graph.replaced(new)


def separate_rows(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a qkv weight or bias from (head, channel, which) to (which, head, channel)."""
    rows, *rest = tensor.shape
    return tensor.reshape(heads, rows // (3 * heads), 3, *rest).permute(2, 0, 1, *range(3, 3 + len(rest))).flatten(0, 2)


def mix_before_upsampling(first: Node, second: Node) -> list[AnyNode] | None:
    """A 1x1 convolution of an image whose pixels were each repeated in a square is made on the smaller image."""
    up, conv = first.args, second.args
    if not isinstance(up, UpfirdnArgs) or not isinstance(conv, Conv2dArgs) or not repeats_pixels(up):
        return None
    if conv.weight.shape[-1] != 1 or conv.padding or conv.emb is not None or conv.residual is not None:
        return None
    n, _, *size = up.x.shape
    mixed: Any = Value((n, len(conv.weight), *size))
    small = Node(second.function, conv._replace(x=up.x), [mixed])
    return [small, Node(first.function, up._replace(x=mixed), second.outputs)]


def silu_before_upsampling(graph: Graph) -> Graph:
    """SiLU of an image whose pixels were each repeated in a square is taken on the smaller image."""
    producers = graph.producers()
    new: dict[AnyNode, list[AnyNode]] = {}
    for node in graph.nodes:
        args = node.args
        up = producers.get(args.x) if isinstance(args, PixelNormArgs) and isinstance(args.x, Value) else None
        if not isinstance(up, Node) or not isinstance(node, Node) or not isinstance(up.args, UpfirdnArgs):
            continue
        if not args.norm and args.gain is None and repeats_pixels(up.args):
            small: Any = Value(up.args.x.shape)
            first = Node(node.function, args._replace(x=up.args.x), [small])
            new[node] = [first, Node(up.function, up.args._replace(x=small), node.outputs)]
    return graph.replaced(new)


def scale_after_joining(graph: Graph) -> Graph:
    """Images that are joined after a factor each are joined without: what reads the whole takes the factors in."""
    producers, readers = graph.producers(), graph.readers()
    device = next((tensor.device for node in graph.nodes for tensor in tensors(node.args)), None)
    new: dict[AnyNode, list[AnyNode]] = {}
    for node in graph.nodes:
        if not is_concatenation(node):
            continue
        pairs = [scaled(part, producers.get(part)) for part in parts_of(node)]
        if [image for image, _ in pairs] == [*parts_of(node)]:
            continue
        unit = all(factor == 1 for _, factor in pairs)
        if not unit and not all(takes_factors(reader, node.output) for reader in readers[node.output]):
            continue
        for reader in () if unit else dict.fromkeys(readers[node.output]):
            factors = [torch.full((1, image.shape[1]), factor, device=device) for image, factor in pairs]
            new[reader] = [with_factors(new.get(reader, [reader])[0], torch.cat(factors, 1))]
        assert isinstance(node, Node)
        (_, *rest), kwargs = node.args
        new[node] = [Node(node.function, TorchArgs(([image for image, _ in pairs], *rest), kwargs), node.outputs)]
    return graph.replaced(new)


def scaled(part: Value, node: AnyNode | None) -> tuple[Value, float]:
    """An image and the number it is multiplied by."""
    if (
        isinstance(node, Node)
        and isinstance(node.args, TorchArgs)
        and len(node.args.args) == 2
        and not node.args.kwargs
    ):
        image, factor = node.args.args
        if getattr(node.function, "__name__", "") in ("mul", "__mul__", "__rmul__") and isinstance(image, Value):
            if isinstance(factor, (int, float)):
                return image, float(factor)
    return part, 1.0


def takes_factors(node: Any, image: Value) -> bool:
    """Whether a node can multiply the channels of the image that it reads once."""
    args = getattr(node, "args", None)
    if isinstance(args, PixelNormArgs):
        return not args.norm and args.gain is None
    return isinstance(args, Conv2dArgs) and args.residual is not image


def with_factors(node: Any, factors: torch.Tensor) -> Node:
    """The node with the channels of its image multiplied by factors (1, C)."""
    if isinstance(node.args, PixelNormArgs):
        return Node(node.function, node.args._replace(gain=factors), node.outputs)
    weight = node.args.weight
    return Node(node.function, node.args._replace(weight=weight * factors[0, :, None, None].to(weight)), node.outputs)


def fold_clip(first: Node, second: Node) -> list[AnyNode] | None:
    """A convolution whose results are kept within limits of one size clips them itself."""
    conv, args = first.args, second.args
    if not isinstance(conv, Conv2dArgs) or conv.clip is not None or not isinstance(args, TorchArgs) or args.kwargs:
        return None
    if getattr(second.function, "__name__", "") not in ("clip", "clamp") or len(args.args) != 3:
        return None
    _, low, high = args.args
    if not isinstance(high, (int, float)) or low != -high or high <= 0:
        return None
    return [Node(first.function, conv._replace(clip=float(high)), second.outputs)]


def repeats_pixels(up: UpfirdnArgs) -> bool:
    """Whether every pixel is copied to a square of them."""
    return up.up > 1 and up.padding == 0 and up.f.shape[0] == up.up and bool((up.f == 1 / up.up**2).all())


def skip_dropout(first: Node, second: Node) -> list[AnyNode] | None:
    """Dropout outside of training is its input, and keeps no norm from the convolution after it."""
    if second.function is not F.dropout or second.args.kwargs.get("training", True) or len(first.outputs) > 1:
        return None
    return [Node(first.function, first.args, second.outputs)]


def fuse_norm(first: Node, second: Node) -> list[AnyNode] | None:
    """A norm and the convolution of its image."""
    fits = isinstance(first.args, GroupNormSiluArgs) and convolves(second, first.output)
    return [Fused("norm", first, second)] if fits else None


def fuse_gain(first: Node, second: Node) -> list[AnyNode] | None:
    """A factor and SiLU, which a convolution takes in as it does a norm, and the convolution of its image."""
    fits = isinstance(first.args, PixelNormArgs) and not first.args.norm and convolves(second, first.output)
    return [Fused("norm", first, second)] if fits else None


def fuse_upsampling(first: Node, second: Node) -> list[AnyNode] | None:
    """An upsampling that repeats pixels and the convolution of its image."""
    fits = isinstance(first.args, UpfirdnArgs) and repeats_pixels(first.args) and convolves(second, first.output)
    return [Fused("upsampling", first, second)] if fits else None


def convolves(node: Node, image: Value) -> bool:
    return isinstance(node.args, Conv2dArgs) and node.args.x is image


def join_embeddings(graph: Graph, dtype: torch.dtype) -> Graph:
    """Linear layers of one and the same vector, such as the noise embedding of every block, as one product. What ops
    alone read of it is cast to the dtype of their images, once."""
    groups: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node, Node) and isinstance(node.args, LinearArgs):
            groups.setdefault(node.args.x, []).append(node)
    readers = graph.readers()
    joined: dict[AnyNode, Node] = {}
    for group in groups.values():
        if len(group) > 1:
            own = all(_read_by_ops(node.output, readers) for node in group)
            joined[group[0]] = _joined(group, dtype if own else torch.float32)
    gone = {node for group in groups.values() for node in group[1:]}
    return dataclasses.replace(graph, nodes=[joined.get(node, node) for node in graph.nodes if node not in gone])


def _read_by_ops(value: Value, readers: dict[Value, list[Any]]) -> bool:
    """Whether ops of images read this and nobody else does, perhaps in chunks."""

    def fits(reader: Any) -> bool:
        if not isinstance(reader, Node) or isinstance(reader.args, LinearArgs):
            return False
        chunks = getattr(reader.function, "__name__", "") == "chunk"
        parts = reader.outputs if chunks else []
        return isinstance(reader.function, Op) or (chunks and all(_read_by_ops(part, readers) for part in parts))

    return all(map(fits, readers.get(value, ())))


def _joined(group: list[Node], dtype: torch.dtype) -> Node:
    layers: list[LinearArgs] = [node.args for node in group]
    sizes = [len(layer.weight) for layer in layers]
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat(biases)

    def products(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return F.linear(x, weight, bias).to(dtype).split(sizes, dim=1)

    return Node(products, TorchArgs((layers[0].x,), {}), [node.output for node in group])
