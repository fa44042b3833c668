"""trace(): the calls of a module in order, without running it."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

from edm_fast import ops
from edm_fast.checkpoint import demo_path
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.plan._graph import map_values
from edm_fast.plan._shapes import result_of
from edm_fast.plan._trace import trace


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
    functions = [node.function for node in graph.nodes]
    return [getattr(f, "name", None) or f.__name__.replace("__iadd__", "add_") for f in functions]


def test_nodes_are_the_calls_that_the_output_needs():
    module, graph = traced()
    assert names(graph) == ["conv2d", "add_", "reshape", "mul", "cat"]
    assert list(graph.inputs) == ["x", "scale"] and graph.output.shape == (2, 8, 6, 6)
    conv2d, add = graph.nodes[:2]
    assert isinstance(conv2d.args, Conv2dArgs) and conv2d.args.x is graph.inputs["x"]
    assert conv2d.args.weight.data_ptr() == module.weight.data_ptr()  # the network's own, not a copy
    assert conv2d.args.scale == 1 and conv2d.args.emb is None  # defaults are there by name


def test_constants_are_folded():
    _, graph = traced()
    assert torch.equal(graph.nodes[1].args.args[1], torch.tensor(3.0))


def test_an_addition_in_place_makes_a_new_value():
    _, graph = traced()
    conv2d, add = graph.nodes[:2]
    assert add.args.args[0] is conv2d.outputs[0] and add.outputs[0] is not conv2d.outputs[0]
    assert graph.nodes[3].args.args[0] is add.outputs[0]
    assert graph.nodes[4].args.args[0] == [add.outputs[0], graph.nodes[3].outputs[0]]


def test_the_nodes_compute_what_the_module_does():
    module, graph = traced()
    inputs = {"x": torch.randn(2, 3, 6, 6), "scale": torch.randn(2)}
    values = {graph.inputs[name]: tensor for name, tensor in inputs.items()}

    with torch.no_grad():
        for node in graph.nodes:
            values[node.output] = node.run(map_values(values.__getitem__, node.args))
        assert torch.equal(values[graph.output], module(**inputs))


def test_the_module_is_left_alone():
    module = Small()
    before = {name: (tensor, tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    trace(module, {"x": (1, 3, 4, 4), "scale": (1,)})
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])


ROWS, COLUMN, WIDE = (torch.empty(shape, device="meta") for shape in ((3, 4), (3, 1), (2, 3, 4)))
HALF = torch.empty(3, 4, dtype=torch.float16, device="meta")
CALLS = [
    *[(torch.mul, (ROWS, 2)), (torch.add, (WIDE, COLUMN)), (torch.Tensor.__rpow__, (ROWS, 0.5))],
    *[(torch.sub, (HALF, ROWS)), (torch.div, (COLUMN, HALF)), (torch.cos, (HALF,))],
    *[(torch.cat, ((ROWS, COLUMN), 1)), (torch.cat, ([WIDE, WIDE], -3)), (torch.matmul, (ROWS, ROWS.mT))],
]


@pytest.mark.parametrize(("function", "args"), CALLS)
def test_results_are_known_as_torch_knows_them(function, args):
    got, want = result_of(function, args, {}), function(*args)
    assert got.shape == want.shape and got.dtype == want.dtype and got.is_meta


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.add, (ROWS, WIDE.mT), {}),
        (torch.add, (ROWS, ROWS), {"alpha": 2}),
        (torch.cat, ((ROWS, WIDE), 1), {}),
        (torch.cat, ((ROWS, HALF), 1), {}),
        (torch.matmul, (ROWS, ROWS), {}),
        (torch.matmul, (WIDE, ROWS.mT), {}),
        (torch.div, (ROWS.long(), 2), {}),
        (torch.Tensor.add_, (ROWS, ROWS), {}),
    ],
)
def test_what_needs_more_than_a_rule_is_left_to_torch(function, args, kwargs):
    assert result_of(function, args, kwargs) is None


IMPORTS = """
import sys, torch, edm_fast
net = edm_fast.accelerate(edm_fast.load(sys.argv[1]))
with torch.no_grad():
    assert net(torch.zeros(1, 1, 32, 32), torch.tensor(0.7)).isfinite().all()
print(*[name for name in ("torch._dynamo", "torch._inductor", "sympy", "triton") if name in sys.modules])
"""


def test_the_first_image_waits_for_no_compiler():
    """torch's compiler and Triton take longer to import than a plan takes to make."""
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "EDM_FAST_CACHE_DIR": os.environ["EDM_FAST_CACHE_DIR"]}
    command = [sys.executable, "-c", IMPORTS, str(demo_path())]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


class Normalised(torch.nn.Module):
    """A weight made of the network's own, with noise that is drawn anew at each call."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        noise = [torch.rand_like(self.weight) for _ in range(2)]
        y = ops.conv2d(x, self.weight / self.weight.norm())
        return (
            y
            + ops.conv2d(x, noise[0] - noise[1])
            + ops.conv2d(x, torch.arange(12.0, device=x.device).reshape(4, 3, 1, 1))
        )


def test_what_is_made_of_weights_is_made_once_for_all_shapes():
    module, made = Normalised(), weakref.WeakValueDictionary()
    graphs = [trace(module, {"x": (n, 3, 6, 6)}, made) for n in (1, 2)]
    (weight, noise, box), again = ([n.args.weight for n in g.nodes if isinstance(n.args, Conv2dArgs)] for g in graphs)
    assert again[0] is weight and again[1] is noise and noise.abs().max() > 0
    assert again[2] is not box and torch.equal(again[2], box)  # of a tensor that no name tells
    with torch.no_grad():
        module.weight[0] = 0
    changed = next(n.args.weight for n in trace(module, {"x": (3, 3, 6, 6)}, made).nodes if hasattr(n.args, "weight"))
    assert torch.equal(changed, module.weight / module.weight.norm()) and not torch.equal(changed, weight)
    del graphs, weight, noise, box, again, changed
    gc.collect()
    assert not made
