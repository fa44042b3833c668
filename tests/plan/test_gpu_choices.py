"""Which candidate each call of a GPU plan runs on, and what becomes of a plan when one fails after it was measured.

Programs run on CPU tensors, and a stand-in records the calls of a graph.
"""

import pytest
import torch

from edm_fast import backend
from edm_fast.evaluation._networks import inputs
from edm_fast.ops import _triton
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.plan import _gpu, _gpu_convolutions, _gpu_program, _implementations
from edm_fast.plan._graph import Fused, Node
from edm_fast.plan._select import Candidate
from helpers import taped_graph
from helpers.planned_networks import moved, network, planned


def steps_of(fast):
    (program,) = next(iter(fast.model.pool.programs.values()))
    return program.steps


class FailsLater:
    """torch's implementation, which raises from some call on."""

    def __init__(self, implementation, calls):
        self.implementation, self.calls = implementation, calls

    def __call__(self, args):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("out of resource: shared memory\nRequired: 118784")
        return self.implementation(args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the graph itself is there")
@pytest.mark.parametrize("calls", [0, 1, 3])  # it works never, until it is recorded, and until the last run
@pytest.mark.parametrize("every", [False, True])
def test_a_plan_survives_what_fails_after_it_was_measured(monkeypatch, calls, every):
    taped_graph.put_in_place(monkeypatch)
    own, planted = _implementations.candidates, []

    def candidates(node, args, *rest):
        found = own(node, args, *rest)
        if isinstance(args, Conv2dArgs) and (every or not planted):
            planted.append(FailsLater(found[0].implementation, calls))
            found.append(Candidate("planted", planted[-1]))
        return found

    monkeypatch.setattr(_implementations, "candidates", candidates)
    net = network("ddpmpp")
    x, sigma, labels = inputs(net, 2, 0.7)
    fast = planned(net, "bf16", lambda key, ways: {name: 1.0 - (name == "planted") for name in ways})
    with torch.no_grad():
        want, found = planned(net, "bf16")(x, sigma, labels), fast(x, sigma, labels)
    assert torch.equal(found, want) and planted
    assert {step.candidate.name for step in steps_of(fast)} & {"planted"} == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the graph itself is there")
def test_a_graph_that_cannot_be_recorded_is_one_of_torch_alone(monkeypatch):
    taped_graph.put_in_place(monkeypatch)

    class Fails(taped_graph.Captured):
        def __init__(self, function, device, beside=None):
            super().__init__(function, device, beside)
            if any(step.candidate.name == "cpu" for step in function.__self__.steps):
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(_gpu_program, "Captured", Fails)
    net = network("ddpmpp")
    fast = planned(net, "fp32", lambda key, ways: {name: 1.0 - (name == "cpu") for name in ways})
    with torch.no_grad():
        fast(*inputs(net, 2, 0.7))
    assert "cpu" not in {step.candidate.name for step in steps_of(fast)}


def test_where_torch_itself_fails_the_error_is_its_own(monkeypatch):
    net = network("ddpmpp")
    monkeypatch.setattr(_implementations, "candidates", lambda *args: [Candidate("torch", FailsLater(None, 0))])
    with pytest.raises(RuntimeError, match="out of resource"):
        planned(net, "fp32")(*moved(*inputs(net, 2, 0.7)))


def test_pairs_take_the_time_of_their_halves():
    """Which are measured once each; torch's pair and what merges both are measured whole."""
    image, measured = torch.ones(1, 2, 2, 2), []
    args = GroupNormSiluArgs(image, image[0, :, 0, 0], image[0, :, 0, 0], 1, 1e-5), Conv2dArgs(image, image)
    nodes = [Node(backend.ops()[name], own, []) for name, own in zip(("group_norm_silu", "conv2d"), args)]
    seconds = {"torch": 8.0, "kernel": 3.0, "slow": 4.0, "torch+torch": 9.0, "merged": 2.0}

    def measure(key, calls):
        measured.append([*calls])
        return {name: seconds[name] for name in calls if name != "breaks"}

    before = [Candidate(name, lambda args: args.x) for name in ("torch", "kernel", "breaks")]
    after = [Candidate(name, lambda args: args.x) for name in ("torch", "slow")]
    pairs = [Candidate(f"{a.name}+{b.name}", len, halves=(a, b)) for a in before for b in after]
    planner = _gpu.GpuPlanner("fp32", torch.device("cpu"), False, measure)
    halves = {"torch+slow": 12.0, "kernel+torch": 11.0, "kernel+slow": 7.0}
    for merged in ([Candidate("merged", len)], []):
        found = planner._timed(Fused("norm", *nodes), args, [*pairs, *merged], {})
        whole = {"torch+torch": 9.0, "merged": 2.0} if merged else {"torch+torch": 16.0}
        assert {candidate.name: candidate.seconds for candidate in found} == {**halves, **whole}
        assert found[0].name == "torch+torch"
    both = [["torch", "kernel", "breaks"], ["torch", "slow"]]
    assert measured == [*both, ["torch+torch", "merged"], *both]


def test_early_launches_are_a_way_once_they_are_proved(monkeypatch):
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    kernels, given = _gpu_convolutions.kernels(), []
    x, weight = torch.randn(1, 16, 4, 4).half(), torch.randn(16, 16, 3, 3).half() / 12
    args = Conv2dArgs(x, weight)
    assert kernels.early_reason(x.device) is not None
    assert "winograd-early" not in {way.name for way in _gpu_convolutions.ways(args)}
    monkeypatch.setattr(kernels, "early_reason", lambda *args: None)
    monkeypatch.setattr(kernels, "winograd", lambda *args, **kwargs: given.append(kwargs))
    (way,) = [way for way in _gpu_convolutions.ways(args) if way.name == "winograd-early"]
    assert way.leaves_statistics and way.merged == "merged-winograd-early"
    way.run(lambda weight, layout: _gpu_convolutions.pack(weight, layout, weight.dtype), args)
    assert given[0]["early"]


def test_the_kernel_in_gluon_is_a_way_once_it_is_proved(monkeypatch):
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    kernels = _gpu_convolutions.kernels()
    x, weight = torch.randn(1, 64, 2, 32).half(), torch.randn(64, 64, 3, 3).half() / 24
    args = Conv2dArgs(x, weight, torch.randn(64).half(), None, x, 0.5)
    assert "boxes" not in {way.name for way in _gpu_convolutions.ways(args)}
    monkeypatch.setattr(kernels, "boxes_reason", lambda *args: None)
    monkeypatch.setattr(kernels, "in_boxes", kernels.forward)
    (way,) = [way for way in _gpu_convolutions.ways(args) if way.name == "boxes"]
    assert not way.leaves_statistics and not way.merged
    found = way.run(lambda weight, layout: _gpu_convolutions.pack(weight, layout, weight.dtype), args)
    torch.testing.assert_close(found, backend.ops()["conv2d"].reference(args), rtol=1e-2, atol=1e-2)
