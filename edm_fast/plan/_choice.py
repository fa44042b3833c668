"""Which way each call of a GPU plan runs: each call's ways are measured once, and their sum is made least.

Statistics couple the choices: a norm can take those of its image only where the convolution before it left them, which
costs that one time. A norm reads one image, so that the calls so coupled are trees, and the least sum is found exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edm_fast.plan._fused import Asked
from edm_fast.plan._trace import Node, Value
from edm_fast.plan._ways import Way


@dataclasses.dataclass(eq=False)
class Step:
    """A node, the ways it may run, the chosen one's name, and the values nobody reads after it."""

    node: Node
    image: Value | None = None  # whose statistics its norm may take
    asked: Asked | None = None  # the statistics it may leave
    dead: list[Value] = dataclasses.field(default_factory=list)
    key: str = ""
    ways: dict[str, Way] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    name: str = ""

    @property
    def way(self) -> Way:
        return self.ways[self.name]

    @property
    def output(self) -> Value:
        return self.node.outputs[0]


def cheapest(steps: Sequence[Step]) -> None:
    """Choose a way for every step: the least sum of seconds in which whoever takes statistics finds them made.

    From the last step back: the least for a step and all that hang on its choice, with the statistics of its image
    given and without. Then forth, along what was given.
    """
    readers: dict[Value, list[Step]] = {}
    for step in steps:
        if step.image is not None:
            readers.setdefault(step.image, []).append(step)
    least: dict[tuple[Step, bool], tuple[float, str]] = {}

    def total(step: Step, name: str) -> float:
        makes = step.ways[name].makes
        return step.seconds[name] + sum(least[reader, makes][0] for reader in readers.get(step.output, ()))

    for step in reversed(steps):
        for given in (False, True):
            able = [(total(step, name), name) for name, way in step.ways.items() if given or not way.takes]
            least[step, given] = min(able, key=lambda found: found[0])
    made: set[Value | None] = set()
    for step in steps:
        _, step.name = least[step, step.image in made]
        if step.way.makes:
            made.add(step.output)
