"""torch.compile of whole networks: no warning, few graphs, the same images and gradients."""

import contextlib
import warnings

import pytest
import torch

from helpers.planned_networks import network


@contextlib.contextmanager
def compiled(net):
    """A compiled copy and its list of graphs; the limit is more than they need and less than there are noise levels."""
    graphs = []

    def eager(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with torch._dynamo.config.patch(recompile_limit=6, fail_on_recompile_limit_hit=True):
            yield torch.compile(net, backend=eager), graphs
    assert not [str(warning.message) for warning in told]


@pytest.mark.parametrize("name", ["ddpmpp", "adm-iddpm"])
def test_few_graphs_serve_every_batch_and_level(name):
    net = network(name, model_channels=16, channel_mult=[1], attn_resolutions=[8])
    with compiled(net) as (run, graphs), torch.no_grad():
        for batch in (2, 3, 4):
            x = torch.randn(batch, 3, 8, 8)
            for sigma in (0.1, 5.0):
                sigma = torch.full((batch,), sigma)
                torch.testing.assert_close(run(x, sigma), net(x, sigma))
        assert len(graphs) <= 3
        for sigma in (0.1, 0.2, 0.4, 0.7, 1.0):
            torch.testing.assert_close(run(x, sigma), net(x, sigma))
        assert len(graphs) <= 5


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_training_compiles_too(dropout):
    net = network("ddpmpp", model_channels=16, channel_mult=[1], attn_resolutions=[8], dropout=dropout)
    parameters = [*net.train().requires_grad_(True).parameters()]
    with compiled(net) as (run, graphs):
        for batch in (2, 3):
            x, sigma, found = torch.randn(batch, 3, 8, 8), torch.full((batch,), 0.7), []
            for f in (run, net):
                torch.manual_seed(0)
                found.append(torch.autograd.grad(f(x, sigma).square().sum(), parameters, allow_unused=True))
            torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert len(graphs) <= 2
