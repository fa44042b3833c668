"""rewritten(): the same computation in nodes that kernels take, or take sooner; exact but for rounding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edm_fast.plan._trace import Graph, Node, Value


def rewritten(graph: Graph) -> list[Node]:
    """The nodes of a graph after every rule."""
    nodes = join_linear(graph.nodes, graph.output)
    nodes = separate_qkv(nodes, graph.output)
    return mix_before_upsampling(nodes, graph.output)


def uses_of(nodes: list[Node], output: Value) -> dict[Value, list[Any]]:
    """Who reads each value: nodes, and the caller."""
    uses: dict[Value, list[Any]] = {output: ["caller"]}
    for node in nodes:
        for value in node.inputs():
            uses.setdefault(value, []).append(node)
    return uses


def join_linear(nodes: list[Node], output: Value) -> list[Node]:
    """x W and the bias added to it as one node "linear"."""
    uses = uses_of(nodes, output)
    joined: list[Node] = []
    gone: set[Node] = set()
    for node in nodes:
        if node in gone:
            continue
        if node.function is torch.matmul and is_linear(node):
            x, weight = node.args
            bias, last = None, node
            following = uses.get(node.outputs[0], [])
            if len(following) == 1 and is_bias(following[0], node.outputs[0]):
                last, bias = following[0], following[0].args[1]
                gone.add(last)
            node = Node("linear", torch.matmul, (), {"x": x, "weight": weight.mT, "bias": bias}, last.outputs)
        joined.append(node)
    return joined


def is_linear(node: Node) -> bool:
    if len(node.args) != 2 or node.kwargs:
        return False
    x, weight = node.args
    return isinstance(x, Value) and len(x.shape) == 2 and isinstance(weight, torch.Tensor) and weight.ndim == 2


def is_bias(node: Any, value: Value) -> bool:
    if not isinstance(node, Node):
        return False
    adds = getattr(node.function, "__name__", "") in ("add", "add_", "__add__", "__iadd__")
    if not adds or len(node.args) != 2 or node.kwargs or node.args[0] is not value:
        return False
    return isinstance(node.args[1], torch.Tensor) and node.args[1].ndim == 1


def join_embeddings(nodes: list[Node]) -> list[Node]:
    """Linear layers of one and the same vector, such as the noise embedding of every block, as one product."""
    groups: dict[Value, list[Node]] = {}
    for node in nodes:
        if node.kind == "linear":
            groups.setdefault(node.kwargs["x"], []).append(node)
    joined: list[Node] = []
    for node in nodes:
        group = groups.get(node.kwargs["x"], []) if node.kind == "linear" else []
        if len(group) < 2:
            joined.append(node)
        elif node is group[0]:
            joined.append(_joined(group))
    return joined


def _joined(group: list[Node]) -> Node:
    weights = [node.kwargs["weight"] for node in group]
    sizes = [len(weight) for weight in weights]
    given = [node.kwargs["bias"] for node in group]
    biases = [weight.new_zeros(len(weight)) if b is None else b for weight, b in zip(weights, given)]
    weight, bias = torch.cat(weights), torch.cat(biases)

    def products(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return F.linear(x, weight, bias).split(sizes, dim=1)

    return Node("torch", products, (group[0].kwargs["x"],), {}, [node.outputs[0] for node in group])


def separate_qkv(nodes: list[Node], output: Value) -> list[Node]:
    """Where a 1x1 convolution makes q, k and v for attention alone, its rows are put in the order which, head, channel
    in place of head, channel, which: vectors of channels are then vectors in memory."""
    uses = uses_of(nodes, output)
    producers = {node.outputs[0]: node for node in nodes if node.kind == "conv2d"}
    for node in nodes:
        if node.kind != "attention":
            continue
        producer = producers.get(node.kwargs["qkv"])
        if producer is None or uses[node.kwargs["qkv"]] != [node] or producer.kwargs["weight"].shape[-1] != 1:
            continue
        k = producer.kwargs
        if k["emb"] is not None or k["residual"] is not None:
            continue
        node.kwargs = {**node.kwargs, "apart": True}
        producer.kwargs = {**k, **{name: apart(k[name], node.kwargs["num_heads"]) for name in ("weight", "bias")}}
    return nodes


def apart(tensor: torch.Tensor | None, heads: int) -> torch.Tensor | None:
    """Rows of a qkv weight or bias from (head, channel, which) to (which, head, channel)."""
    if tensor is None:
        return None
    rows, *rest = tensor.shape
    return tensor.reshape(heads, rows // (3 * heads), 3, *rest).permute(2, 0, 1, *range(3, 3 + len(rest))).flatten(0, 2)


def mix_before_upsampling(nodes: list[Node], output: Value) -> list[Node]:
    """A 1x1 convolution of an image whose pixels were each repeated in a square is made on the smaller image."""
    uses = uses_of(nodes, output)
    producers = {node.outputs[0]: node for node in nodes if node.kind == "upfirdn"}
    result: list[Node] = []
    for node in nodes:
        k = node.kwargs
        before = producers.get(k["x"]) if node.kind == "conv2d" else None
        if before is None or not mixes(node) or not repeats(before) or uses[k["x"]] != [node]:
            result.append(node)
            continue
        result.remove(before)
        x = before.kwargs["x"]
        mixed = Value((x.shape[0], k["weight"].shape[0], *x.shape[2:]))
        result.append(Node("conv2d", node.function, (), {**k, "x": x}, [mixed]))
        result.append(Node("upfirdn", before.function, (), {**before.kwargs, "x": mixed}, node.outputs))
    return result


def mixes(node: Node) -> bool:
    """Whether a convolution mixes the channels of each pixel and adds no image."""
    k = node.kwargs
    return k["weight"].shape[-1] == 1 and not k["padding"] and k["emb"] is None and k["residual"] is None


def repeats(node: Node) -> bool:
    """Whether an upfirdn node copies every pixel to a square of them."""
    k = node.kwargs
    box = k["f"].shape[0] == k["up"] and bool((k["f"] == 1 / k["up"] ** 2).all())
    return k["up"] > 1 and k["padding"] == 0 and box


def join_pairs(nodes: list[Node], output: Value, kinds: tuple[str, ...] = ("group_norm_silu", "upfirdn")) -> list[Node]:
    """A norm or an upsampling that one convolution alone reads, and that convolution, as one node "pair".

    Its kwargs: "first" and "second", the arguments of both, the latter's without x; its function: the two ops.
    """
    uses = uses_of(nodes, output)
    producers = {node.outputs[0]: node for node in nodes if node.kind in kinds}
    result: list[Node] = []
    for node in nodes:
        first = producers.get(node.kwargs["x"]) if node.kind == "conv2d" else None
        if first is None or uses[node.kwargs["x"]] != [node] or (first.kind == "upfirdn" and not repeats(first)):
            result.append(node)
            continue
        result.remove(first)
        second = {name: value for name, value in node.kwargs.items() if name != "x"}
        kwargs = {"first": first.kwargs, "second": second}
        result.append(Node("pair", (first.function, node.function), (), kwargs, node.outputs))  # type: ignore[arg-type]
    return result


def ask_statistics(nodes: list[Node]) -> dict[Value, tuple[int, float]]:
    """The images that a convolution makes and a norm reads, with groups and eps of the first such norm."""
    made = {node.outputs[0] for node in nodes if node.kind in ("conv2d", "pair")}
    asked: dict[Value, tuple[int, float]] = {}
    for node in nodes:
        if (norm := _norm(node)) is not None and norm["x"] in made:
            asked.setdefault(norm["x"], (norm["groups"], norm["eps"]))
    return asked


def norm_of(node: Node, asked: dict[Value, tuple[int, float]]) -> Value | None:
    """The image of a node's norm, if it could take the statistics asked for that image."""
    norm = _norm(node)
    fits = norm is not None and asked.get(norm["x"]) == (norm["groups"], norm["eps"])
    return norm["x"] if norm is not None and fits else None


def _norm(node: Node) -> dict[str, Any] | None:
    """The arguments of the norm that a node begins with."""
    if node.kind == "pair" and "groups" in node.kwargs["first"]:
        return node.kwargs["first"]
    return node.kwargs if node.kind == "group_norm_silu" else None
