"""trace(): the calls of a module in order, without running it."""

import torch

from edm_fast import ops
from edm_fast.plan._trace import Value, trace


class Small(torch.nn.Module):
    """One of each: an op, a call of torch, an addition in place, a constant, something that nobody uses."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("f", torch.ones(2, 2) / 4)

    def forward(self, x, scale):
        ops.upfirdn(x, self.f, down=2)
        y = ops.conv2d(x, self.weight.to(x.dtype))
        y += self.f.sum() * 3
        return torch.cat([y, y * scale.reshape(-1, 1, 1, 1)], dim=1)


def traced():
    module = Small()
    return module, trace(module, {"x": (2, 3, 6, 6), "scale": (2,)})


def names(graph):
    return [
        node.kind if node.kind != "torch" else node.function.__name__.replace("__iadd__", "add_")
        for node in graph.nodes
    ]


def test_nodes_are_the_calls_that_the_output_needs():
    module, graph = traced()
    assert names(graph) == ["conv2d", "add_", "reshape", "mul", "cat"]
    assert list(graph.inputs) == ["x", "scale"] and graph.output.shape == (2, 8, 6, 6)
    conv2d, add = graph.nodes[:2]
    assert conv2d.args == () and conv2d.kwargs["x"] is graph.inputs["x"]
    assert conv2d.kwargs["weight"].data_ptr() == module.weight.data_ptr()  # the network's own, not a copy
    assert conv2d.kwargs["scale"] == 1 and conv2d.kwargs["emb"] is None  # defaults are there by name


def test_constants_are_folded():
    _, graph = traced()
    assert torch.equal(graph.nodes[1].args[1], torch.tensor(3.0))


def test_an_addition_in_place_makes_a_new_value():
    _, graph = traced()
    conv2d, add = graph.nodes[:2]
    assert add.args[0] is conv2d.outputs[0] and add.outputs[0] is not conv2d.outputs[0]
    assert graph.nodes[3].args[0] is add.outputs[0]
    assert graph.nodes[4].args[0] == [add.outputs[0], graph.nodes[3].outputs[0]]


def test_the_nodes_compute_what_the_module_does():
    module, graph = traced()
    inputs = {"x": torch.randn(2, 3, 6, 6), "scale": torch.randn(2)}
    values = {graph.inputs[name]: tensor for name, tensor in inputs.items()}

    def known(tree):
        if isinstance(tree, Value):
            return values[tree]
        if isinstance(tree, (list, tuple)):
            return type(tree)(map(known, tree))
        return {k: known(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    with torch.no_grad():
        for node in graph.nodes:
            values[node.outputs[0]] = node.function(*known(node.args), **known(node.kwargs))
        assert torch.equal(values[graph.output], module(**inputs))


def test_the_module_is_left_alone():
    module = Small()
    before = {name: (tensor, tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    trace(module, {"x": (1, 3, 4, 4), "scale": (1,)})
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])
