"""Norms that a convolution takes as it reads its image: which they are, and what becomes of the plan."""

import math

import pytest
import torch

from edm_fast import native, ops
from edm_fast.evaluation._networks import inputs
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.plan._convolutions import with_algorithms
from edm_fast.plan._graph import Fused
from edm_fast.plan._trace import trace
from helpers import native_conv as nc
from helpers.planned_networks import network, on_algorithm

pytestmark = nc.needs_native


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight, self.bias = torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(4))
        self.three, self.one = (torch.nn.Parameter(torch.randn(4, 4, k, k)) for k in (3, 1))

    def forward(self, x):
        return self.function(self, ops.group_norm_silu(x, self.weight, self.bias, groups=2))


def found(function, algorithm):
    graph = trace(Module(function), {"x": (1, 4, 6, 6)})
    graph, _ = with_algorithms(graph, lambda shape: {native.ALGORITHMS[algorithm]: 0.0}, math.inf)
    return [node for node in graph.nodes if isinstance(node, Fused)]


@pytest.mark.parametrize("algorithm", ["winograd4x8-unpacked", "winograd2x2-unpacked"])
def test_of_unpacked_weights(algorithm):
    (node,) = found(lambda m, x: ops.conv2d(x, m.three), algorithm)
    assert node.rule == "norm" and [type(part.args) for part in (node.first, node.second)] == [
        GroupNormSiluArgs,
        Conv2dArgs,
    ]
    assert node.second.args.x is node.first.output


@pytest.mark.parametrize(
    ("function", "algorithm"),
    [
        (lambda m, x: ops.conv2d(x, m.three), "winograd4x4"),
        (lambda m, x: ops.conv2d(x, m.one), "direct"),
        (lambda m, x: ops.conv2d(x, m.three, residual=x), "winograd4x4-unpacked"),
        (lambda m, x: ops.conv2d(x, m.three) + x, "winograd4x4-unpacked"),
        (lambda m, x: torch.cat([ops.conv2d(x, m.three), ops.conv2d(x, m.one)], 1), "winograd4x4-unpacked"),
        (lambda m, x: ops.conv2d(2 * x, m.three), "winograd4x4-unpacked"),
    ],
    ids=["packed", "pointwise", "its residual", "added later", "read twice", "something between"],
)
def test_not_of(function, algorithm):
    assert not found(function, algorithm)


def test_no_result_is_a_norm_within():
    assert not found(lambda m, x: x, "direct")


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])  # adm: with scale and shift of each image
def test_the_same_bits_from_fewer_steps(name):
    """Packed weights, whose norms come before, give the bits to expect."""
    net = network(name)
    call = inputs(net, 3, 0.7)
    with torch.no_grad():
        before, within = (on_algorithm(net, "winograd4x4", limit) for limit in (float("inf"), 0))
        assert torch.equal(before(*call), within(*call))
    (many,), (few,) = (next(iter(fast.model.pool.programs.values())) for fast in (before, within))
    used = [algorithm for _, algorithm in few.algorithms if not algorithm.packed]
    assert 0 < len(many.steps) - len(few.steps) <= len(used)
