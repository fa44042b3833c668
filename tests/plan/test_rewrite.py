"""Rewrites: what becomes of a graph, and what has to stay as it is."""

import pytest
import torch
import torch.nn.functional as F

from edm_fast import ops
from edm_fast.plan._graph import Fused, LinearArgs, SeparateQKVArgs
from edm_fast.plan._implementations import norm_of, norm_with, wanted_statistics
from edm_fast.plan._rewrite import fuse_norm, rewrite, rewritten, separate_rows, skip_dropout
from edm_fast.plan._trace import trace


class Module(torch.nn.Module):
    """forward(x) = function(module, x), with a few tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.w = torch.nn.Parameter(torch.randn(12, 4, 1, 1))
        self.three = torch.nn.Parameter(torch.randn(12, 4, 3, 3))
        self.row = torch.nn.Parameter(torch.randn(12))
        self.four = torch.nn.Parameter(torch.randn(4))
        self.matrix = torch.nn.Parameter(torch.randn(5, 4))
        self.bias = torch.nn.Parameter(torch.randn(5))
        self.register_buffer("box", torch.ones(2, 2) / 4)
        self.register_buffer("slanted", torch.tensor([[0.1, 0.4], [0.4, 0.1]]))
        self.register_buffer("tent", torch.tensor([1.0, 3, 3, 1]).outer(torch.tensor([1.0, 3, 3, 1])) / 64)

    def forward(self, x):
        return self.function(self, x)


def kinds(function, shape=(2, 4, 4, 4)):
    return [type(node.args).__name__.removesuffix("Args") for node in nodes(function, shape)]


def nodes(function, shape=(2, 4, 4, 4)):
    return rewritten(trace(Module(function), {"x": shape})).nodes


def test_a_product_and_its_bias_are_joined():
    (node,) = nodes(lambda m, x: torch.matmul(x, m.matrix.t()) + m.bias, (2, 4))
    assert isinstance(node.args, LinearArgs) and node.args.weight.shape == (5, 4) and node.args.bias.shape == (5,)
    assert node.output.shape == (2, 5)
    (node,) = nodes(lambda m, x: torch.matmul(x, m.matrix.t()), (2, 4))
    assert isinstance(node.args, LinearArgs) and node.args.bias is None


def test_a_product_used_twice_keeps_its_bias_outside():
    def twice(m, x):
        y = torch.matmul(x, m.matrix.t())
        return (y + m.bias) * y

    assert kinds(twice, (2, 4)) == ["Linear", "Torch", "Torch"]


def test_rows_of_q_k_and_v_are_separated():
    conv2d, attention = nodes(lambda m, x: ops.attention(ops.conv2d(x, m.w), 2))
    assert isinstance(attention.args, SeparateQKVArgs) and conv2d.args.weight.shape == (12, 4, 1, 1)
    rows = torch.arange(12).reshape(2, 2, 3)  # head, channel, which
    want = torch.stack([rows[head, :, which] for which in range(3) for head in range(2)]).flatten()
    assert torch.equal(separate_rows(torch.arange(12), 2), want)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: ops.attention(ops.conv2d(x, m.three), 2),
        lambda m, x: (lambda qkv: torch.cat([ops.attention(qkv, 2), qkv], 1))(ops.conv2d(x, m.w)),
        lambda m, x: ops.attention(ops.conv2d(x, m.w, emb=x.mean((2, 3)).repeat(1, 3)), 2),
    ],
    ids=["three by three", "used twice", "another term"],
)
def test_qkv_rows_stay(function):
    assert not [node for node in nodes(function) if isinstance(node.args, SeparateQKVArgs)]


def test_channels_are_mixed_before_a_box_upsampling():
    def small(m, x):
        return ops.conv2d(ops.upfirdn(x, m.box, up=2), m.w)

    assert kinds(small) == ["Conv2d", "Upfirdn"]
    conv2d, upfirdn = nodes(small)
    assert conv2d.output.shape == (2, 12, 4, 4) and upfirdn.output.shape == (2, 12, 8, 8)
    assert upfirdn.args.x is conv2d.output


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: ops.conv2d(ops.upfirdn(x, m.tent, up=2, padding=1), m.w),
        lambda m, x: ops.conv2d(ops.upfirdn(x, m.slanted, up=2), m.w),
        lambda m, x: ops.conv2d(ops.upfirdn(x, m.box, up=2), m.three),
        lambda m, x: (lambda y: torch.cat([ops.conv2d(y, m.w), y], 1))(ops.upfirdn(x, m.box, up=2)),
    ],
    ids=["wider filter", "another filter", "three by three", "used twice"],
)
def test_channels_are_mixed_after_upsampling(function):
    assert kinds(function)[:2] == ["Upfirdn", "Conv2d"]


def test_statistics_are_wanted_where_a_norm_reads_a_convolution():
    def norm(m, y, groups=2, eps=1e-5):
        return ops.group_norm_silu(y, m.row, m.row, groups, eps)

    def found(function):
        every = nodes(function)
        wanted = wanted_statistics(every)
        return [*wanted.values()], [norm_with(node, wanted) is not None for node in every if norm_of(node) is not None]

    assert found(lambda m, x: norm(m, ops.conv2d(x, m.three), 3, 1e-6)) == ([(3, 1e-6)], [True])
    assert found(lambda m, x: norm(m, torch.cat([x] * 3, 1))) == ([], [False])
    assert found(lambda m, x: ops.conv2d(x, m.three)) == ([], [])

    def several(m, x):
        y = ops.conv2d(x, m.three)
        return norm(m, y) + norm(m, y, 4) + norm(m, y, 2, 1e-6) + norm(m, y)

    assert found(several) == ([(2, 1e-5)], [True, False, False, True])  # the first norm's


@pytest.mark.parametrize("training", [False, True])
def test_dropout_outside_of_training_is_no_call(training):
    def block(m, x):
        normed = F.dropout(ops.group_norm_silu(x, m.four, m.four, 2), 0.1, training)
        return ops.conv2d(normed, m.three, residual=torch.cat([x] * 3, 1))

    graph = rewrite(rewritten(trace(Module(block), {"x": (2, 4, 4, 4)})), skip_dropout, fuse_norm)
    assert [isinstance(node, Fused) for node in graph.nodes] == ([False] * 4 if training else [False, True])
