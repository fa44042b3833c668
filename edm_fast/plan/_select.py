"""Which choice each node of a plan gets: the fastest, as far as memory and what the nodes before it leave allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edm_fast.plan._graph import AnyNode, Value


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a node: an implementation, or an algorithm of one, and what it costs."""

    name: str
    implementation: Any
    seconds: float = 0.0
    floats: int = 0  # of memory for its packed weight
    needs_statistics: bool = False  # of the image that the node's norm reads
    leaves_statistics: bool = False  # of the node's own image
    base: str = ""  # the name of the choice that is the same without statistics


Candidates = Mapping[AnyNode, Sequence[Candidate]]


def fastest(choices: Sequence[Candidate]) -> Candidate:
    return min(choices, key=lambda choice: choice.seconds)


def within_memory(choices: Candidates, limit: float) -> dict[AnyNode, Candidate]:
    """The fastest choice of each node, or a slower one that packs less, so that packed weights have at most `limit`
    floats. Given up first is what saves the least time for its memory."""
    selected = {node: fastest(found) for node, found in choices.items()}
    excess = sum(choice.floats for choice in selected.values()) - limit
    while excess > 0:
        changes = [
            ((other.seconds - now.seconds) / (now.floats - other.floats), index, place)
            for index, (node, now) in enumerate(selected.items())
            for place, other in enumerate(choices[node])
            if other.floats < now.floats
        ]
        if not changes:
            break
        _, index, place = min(changes)
        node = [*selected][index]
        excess -= selected[node].floats - choices[node][place].floats
        selected[node] = choices[node][place]
    return selected


def with_statistics(choices: Candidates, images: Mapping[AnyNode, Value]) -> dict[AnyNode, Candidate]:
    """The choices of least total time in which statistics are needed only where they were left.

    images: of each node whose norm could use statistics, the image they are of. A norm reads one image, so that the
    nodes coupled by statistics are trees. From the last node back: the least time for a node and all that hang on it,
    with the statistics of its image there and not. Then forward, along what was left.
    """
    readers: dict[Value, list[AnyNode]] = {}
    for node, image in images.items():
        readers.setdefault(image, []).append(node)
    least: dict[tuple[AnyNode, bool], tuple[float, Candidate]] = {}

    def total(node: AnyNode, choice: Candidate) -> float:
        return choice.seconds + sum(least[r, choice.leaves_statistics][0] for r in readers.get(node.output, ()))

    for node, found in reversed([*choices.items()]):
        for available in (False, True):
            able = [(total(node, choice), choice) for choice in found if available or not choice.needs_statistics]
            least[node, available] = min(able, key=lambda pair: pair[0])
    left: set[Value] = set()
    selected = {}
    for node in choices:
        _, selected[node] = least[node, node in images and images[node] in left]
        if selected[node].leaves_statistics:
            left.add(node.output)
    return selected
