"""Portable: what peers are given computes the network, at every kind of it."""

import warnings

import pytest
import torch

from edm_fast import backend, networks
from edm_fast.evaluation import _networks
from edm_fast.evaluation._portable import Portable
from helpers.planned_networks import NETWORKS, SMALL, network


def edm2():
    net = networks.build("Precond", {**SMALL, "label_dim": 4, "channels_per_head": 32}).eval().requires_grad_(False)
    _networks.randomise(net)
    return net


@pytest.mark.parametrize("name", [*NETWORKS, "edm2"])
def test_the_same_is_computed_by_operations_that_tracers_know(name):
    net = edm2() if name == "edm2" else network(name)
    portable = Portable(net, _networks.inputs(net, 2, 0.5, seed=1))
    example = _networks.inputs(net, 2, 0.5)  # others than those that are traced
    with torch.no_grad(), warnings.catch_warnings(), backend.use_backend("reference"):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(portable, (*portable.inputs.values(),), check_trace=False)
        run = portable.around(lambda *arrays: traced(*map(torch.from_numpy, arrays)).numpy())
        assert 0 < _networks.relative_error([run(*example)], [net(*example)]) < 1e-5
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::bmm" in kinds and not kinds & {"aten::einsum", "aten::size", "aten::add_", "aten::to"}
