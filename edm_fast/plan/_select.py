"""Which candidate each node of a plan gets: the fastest, as far as memory and what the nodes before it leave allow.

On a CPU `_convolutions.with_algorithms` asks `within_memory`, on a GPU `_gpu` asks `with_statistics`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

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
    base: str = ""  # the name of the candidate that is the same without statistics
    halves: tuple[Candidate, Candidate] | None = None  # that it runs in turn


Candidates = Mapping[AnyNode, Sequence[Candidate]]
K = TypeVar("K")


def fastest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda candidate: candidate.seconds)


def within_memory(candidates: Mapping[K, Sequence[Candidate]], limit: float) -> dict[K, Candidate]:
    """The fastest candidate of each, or a slower one that packs less: packed weights have at most `limit` floats.

    Given up first is what saves the least time for its memory.
    """
    selected = {node: fastest(found) for node, found in candidates.items()}
    excess = sum(candidate.floats for candidate in selected.values()) - limit
    while excess > 0:
        changes = [
            ((other.seconds - now.seconds) / (now.floats - other.floats), index, place)
            for index, (node, now) in enumerate(selected.items())
            for place, other in enumerate(candidates[node])
            if other.floats < now.floats
        ]
        if not changes:
            break
        _, index, place = min(changes)
        node = [*selected][index]
        excess -= selected[node].floats - candidates[node][place].floats
        selected[node] = candidates[node][place]
    return selected


def with_statistics(candidates: Candidates, images: Mapping[AnyNode, Value]) -> dict[AnyNode, Candidate]:
    """The candidates of least total time in which statistics are needed only where they were left.

    images: of each node whose norm could use statistics, the image they are of. A norm reads one image, so that the
    nodes coupled by statistics are trees. From the last node back: the least time for a node and all that hang on it,
    with the statistics of its image there and not. Then forward, along what was left.
    """
    readers: dict[Value, list[AnyNode]] = {}
    for node, image in images.items():
        readers.setdefault(image, []).append(node)
    least: dict[tuple[AnyNode, bool], tuple[float, Candidate]] = {}

    def total(node: AnyNode, candidate: Candidate) -> float:
        return candidate.seconds + sum(least[r, candidate.leaves_statistics][0] for r in readers.get(node.output, ()))

    for node, found in reversed([*candidates.items()]):
        for available in (False, True):
            able = [
                (total(node, candidate), candidate)
                for candidate in found
                if available or not candidate.needs_statistics
            ]
            least[node, available] = min(able, key=lambda pair: pair[0])
    left: set[Value] = set()
    selected = {}
    for node in candidates:
        _, selected[node] = least[node, node in images and images[node] in left]
        if selected[node].leaves_statistics:
            left.add(node.output)
    return selected
