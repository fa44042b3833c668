"""Which candidates go together: the least sum, with statistics needed only where they were left."""

import dataclasses
import itertools
import math
import random

import pytest
import torch

from edm_fast.plan._graph import Node, TorchArgs, Value
from edm_fast.plan._select import Candidate, with_statistics, within_memory
from edm_fast.plan._tune import time_candidates

ALONE, LEAVES = Candidate("alone", None), Candidate("leaves", None, leaves_statistics=True)
NEEDS, BOTH = Candidate("needs", None, needs_statistics=True), Candidate("both", None, 0.0, 0, True, True)
CONVOLUTION, NORM = [ALONE, LEAVES], [ALONE, NEEDS]
FUSED = [ALONE, LEAVES, NEEDS, BOTH]


def node():
    return Node(torch.neg, TorchArgs((), {}), [Value((1,))])


def timed(candidates, *seconds):
    return [dataclasses.replace(candidate, seconds=time) for candidate, time in zip(candidates, seconds, strict=True)]


def names(selected):
    return [candidate.name for candidate in selected.values()]


@pytest.mark.parametrize(
    "leaves, needs, expected",
    [
        (11, 3, ["leaves", "needs"]),
        (13, 3, ["alone", "alone"]),
        (13, 1, ["leaves", "needs"]),
        (9, 9, ["leaves", "alone"]),
    ],
)
def test_the_sum_decides(leaves, needs, expected):
    conv, norm = node(), node()
    candidates = {conv: timed(CONVOLUTION, 10, leaves), norm: timed(NORM, 5, needs)}
    assert names(with_statistics(candidates, {norm: conv.output})) == expected


def test_readers_share_what_the_statistics_cost():
    conv, *norms = (node() for _ in range(4))
    candidates = {conv: timed(CONVOLUTION, 10, 13), **{norm: timed(NORM, 5, 3) for norm in norms}}
    images = dict.fromkeys(norms, conv.output)
    few = {n: candidates[n] for n in (conv, norms[0])}
    assert names(with_statistics(few, {norms[0]: conv.output})) == ["alone", "alone"]
    assert names(with_statistics(candidates, images)) == ["leaves"] + ["needs"] * 3


def cost(selected, images):
    """Seconds of these candidates, or None where statistics are needed that nobody left."""
    left = {node.output for node, candidate in selected.items() if candidate.leaves_statistics}
    if any(candidate.needs_statistics and images.get(node) not in left for node, candidate in selected.items()):
        return None
    return sum(candidate.seconds for candidate in selected.values())


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_is_faster(seed):
    """Of trees of six calls, every candidate there is."""
    rng = random.Random(seed)
    candidates, images = {}, {}
    for i in range(6):
        found = rng.choice([FUSED, CONVOLUTION, NORM]) if i else CONVOLUTION
        new = node()
        if i:
            images[new] = rng.choice([*candidates]).output
        candidates[new] = timed(found, *(rng.random() for _ in found))
    costs = [cost(dict(zip(candidates, each)), images) for each in itertools.product(*candidates.values())]
    assert cost(with_statistics(candidates, images), images) == min(c for c in costs if c is not None)


@pytest.mark.parametrize("merged, measured", [(1.4, True), (1.6, False)])
def test_statistics_of_a_hopeless_candidate_are_not_timed(merged, measured):
    seconds = {"fast": 1.0, "merged": merged, "merged+statistics": 0.5}
    candidates, requests = [Candidate("fast", None), Candidate("merged", None)], []
    candidates.append(Candidate("merged+statistics", None, leaves_statistics=True, base="merged"))

    def measure(key, calls):
        requests.append([*calls])
        return {name: seconds[name] for name in calls}

    found = time_candidates(candidates, dict.fromkeys(seconds), "", measure)
    assert requests == [["fast", "merged"], ["fast", "merged+statistics"]][: 1 + measured]
    assert {candidate.name: candidate.seconds for candidate in found} == dict([*seconds.items()][: 2 + measured])
    (best,) = with_statistics({node(): found}, {}).values()
    assert best.name == ("merged+statistics" if measured else "fast")


def test_packed_weights_stay_within_their_limit():
    """What is given up first saves the least time for its memory; what needs none is taken where it is the fastest."""
    direct, packed, unpacked = (
        Candidate("direct", None, 0.0, 1),
        Candidate("packed", None, 0.0, 4),
        Candidate("unpacked", None),
    )
    times = [(30, 10, 11), (9, 2, 5), (3, 1, 0.5)]
    candidates = {node(): timed([direct, packed, unpacked], *each) for each in times}

    def found(limit):
        return names(within_memory(candidates, limit))

    assert found(math.inf) == found(8) == ["packed", "packed", "unpacked"]
    assert found(7) == ["unpacked", "packed", "unpacked"]
    assert found(3) == found(0) == ["unpacked"] * 3
    alone = {each: [dataclasses.replace(direct, seconds=1.0)] for each in candidates}
    assert names(within_memory(alone, 0)) == ["direct"] * 3  # nothing takes less
