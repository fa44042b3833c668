"""Which ways of a GPU plan go together: the least sum, with statistics taken only where they were made."""

import itertools
import random

import pytest

from edm_fast.plan._choice import Step, cheapest
from edm_fast.plan._trace import Node, Value
from edm_fast.plan._tune import time_ways
from edm_fast.plan._ways import Way

CONVOLUTION = {"plain": Way(None), "leaves": Way(None, makes=True)}
NORM = {"plain": Way(None), "takes": Way(None, takes=True)}
PAIR = {**CONVOLUTION, **NORM, "both": Way(None, True, True)}


def step(image, ways, **seconds):
    node = Node("conv2d", None, (), {}, [Value((1,))])
    return Step(node, image=image, ways=ways, seconds=seconds)


@pytest.mark.parametrize(
    "leaves, takes, names",
    [
        (11, 3, ["leaves", "takes"]),
        (13, 3, ["plain", "plain"]),
        (13, 1, ["leaves", "takes"]),
        (9, 9, ["leaves", "plain"]),
    ],
)
def test_the_sum_decides(leaves, takes, names):
    conv = step(None, CONVOLUTION, plain=10, leaves=leaves)
    norm = step(conv.output, NORM, plain=5, takes=takes)
    cheapest([conv, norm])
    assert [conv.name, norm.name] == names


def test_readers_share_what_the_statistics_cost():
    conv = step(None, CONVOLUTION, plain=10, leaves=13)
    norms = [step(conv.output, NORM, plain=5, takes=3) for _ in range(3)]
    cheapest([conv, *norms[:1]])
    assert [conv.name, norms[0].name] == ["plain", "plain"]
    cheapest([conv, *norms])
    assert [conv.name, *(norm.name for norm in norms)] == ["leaves"] + ["takes"] * 3


def cost(steps, names):
    """Seconds of the steps in these ways, or None where statistics are taken that nobody left."""
    made = {s.output for s, name in zip(steps, names) if s.ways[name].makes}
    if any(s.ways[name].takes and s.image not in made for s, name in zip(steps, names)):
        return None
    return sum(s.seconds[name] for s, name in zip(steps, names))


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_is_faster(seed):
    """Of trees of six calls, every choice there is."""
    rng = random.Random(seed)
    steps = []
    for i in range(6):
        image = rng.choice(steps).output if i else None
        ways = rng.choice([PAIR, CONVOLUTION, NORM]) if i else CONVOLUTION
        steps.append(step(image, ways, **{name: rng.random() for name in ways}))
    costs = [cost(steps, names) for names in itertools.product(*(s.ways for s in steps))]
    cheapest(steps)
    assert cost(steps, [s.name for s in steps]) == min(c for c in costs if c is not None)


@pytest.mark.parametrize("merged, timed", [(1.4, True), (1.6, False)])
def test_statistics_of_a_hopeless_way_are_not_timed(merged, timed):
    seconds = {"fast": 1.0, "merged": merged, "merged+statistics": 0.5}
    ways = {name: Way(None) for name in ("fast", "merged")}
    ways["merged+statistics"] = Way(None, makes=True, plain="merged")
    conv, asked = step(None, ways), []

    def measure(key, calls):
        asked.append([*calls])
        return {name: seconds[name] for name in calls}

    time_ways(conv, dict.fromkeys(ways), measure)
    assert asked == [["fast", "merged"], ["fast", "merged+statistics"]][: 1 + timed]
    assert conv.name == ("merged+statistics" if timed else "fast") and {*conv.ways} == {*conv.seconds}
    cheapest([conv])
    assert conv.name == ("merged+statistics" if timed else "fast")
