"""accelerate(max_error=...): what an algorithm adds to the whole, the choice of the least time, what it reaches."""

import functools
import math
import pickle

import pytest
import torch

from edm_fast import accelerate, explain, ops
from edm_fast.errors import UserError
from edm_fast.evaluation._networks import Exact, inputs, relative_error
from edm_fast.plan import PlannedUNet, _algorithms, with_model
from edm_fast.plan._errors import Allowance, Chosen, NetworkErrors, _gains, cheapest, probe_shapes, within
from edm_fast.plan._graph import Graph
from edm_fast.plan._trace import trace
from helpers import native_conv as nc
from helpers.planned_networks import network

pytestmark = nc.needs_native
FAMILIES = "ddpmpp", "ncsnpp", "adm"
LEVEL = math.log(0.5) / 4
PRODUCTS = {1: 9.0, 2: 4.0, 4: 2.25, 8: 1.875}  # of an output, by the columns of a tile
SHAPES = {"x": (3, 3, 8, 8), "noise_labels": (1,), "class_labels": (3, 4)}


def seconds(shape, allowed=_algorithms.ALLOWED["fp32"]):
    """By the number of products: no clock decides what the tests see."""
    fits = [a for a in allowed if _algorithms.fits(a, shape)]
    pixels = shape.channels * shape.outputs * shape.after_doubling().h ** 2 * 1e-9
    return {a: pixels * PRODUCTS[a.columns] * (0.7 if a.doubled else 1) for a in fits}


def planned(net, max_error, precision="fp32", choose=None):
    allowance = None if max_error is None else Allowance(max_error, LEVEL)
    choose = choose or functools.partial(seconds, allowed=_algorithms.ALLOWED[precision])
    return with_model(net, PlannedUNet(net.model, precision, True, math.inf, allowance, choose))


def raw_inputs(net, n=3):
    """Other noise than a plan is measured on."""
    x, _, labels = inputs(net, n, 0.5, seed=5)
    return x / x.square().mean().sqrt(), torch.full((1,), LEVEL), labels


def raw_error(net, fast, n=3):
    """The largest ||F - F64|| / ||F64|| of an image."""
    x, level, labels = raw_inputs(net, n)
    with torch.no_grad():
        want = Exact(net).raw(x.double(), level.double(), None if labels is None else labels.double())
        got = fast.model(x, level, labels)
    return max(relative_error([a], [b]) for a, b in zip(got, want))


def chosen(fast):
    (program,) = next(iter(fast.model.pool.programs.values()))
    return [algorithm.name for _, algorithm in program.algorithms], program.error


def time(fast):
    (program,) = next(iter(fast.model.pool.programs.values()))
    return sum(seconds(shape)[algorithm] for shape, algorithm in program.algorithms if shape.h > 1)


def test_gains_are_those_of_the_jacobian():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.Conv2d(6, 2, 3, padding=1)

        def forward(self, x):
            h = ops.conv2d(x, self.first.weight, self.first.bias)
            return ops.conv2d(torch.sin(h), self.second.weight) * 3

    torch.manual_seed(0)
    module = Two().requires_grad_(False)
    graph = trace(module, {"x": (2, 2, 12, 12)})
    x = torch.randn(2, 2, 12, 12)
    found = [*_gains(graph, {"x": x}).values()]

    def after(h):
        return torch.nn.functional.conv2d(torch.sin(h), module.second.weight, padding=1) * 3

    for image in range(2):
        h = module.first(x[image : image + 1])
        want = torch.autograd.functional.jacobian(after, h).square().sum()
        assert 0.8 * want < found[0][image] < 1.25 * want
        assert found[1][image] == pytest.approx(9 * 2 * 144)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_algorithms_add_is_what_the_network_errs_by(name):
    """Where convolutions are what errs most: of the largest tiles."""
    net = network(name)
    graph = trace(net.model, {k: v for k, v in SHAPES.items() if k != "class_labels" or net.label_dim})
    traced = trace(net.model, dict(probe_shapes(graph)))
    errors = NetworkErrors(traced, LEVEL, _algorithms.ALLOWED["fp32"])
    fast = planned(net, None)
    predicted = math.sqrt(errors.choose(graph, seconds, math.inf, 0.0).added)
    got = errors.of(lambda given: fast.model(**given), 3)
    assert 0.6 * got < predicted < 1.5 * got
    names, _ = chosen(fast)
    assert any("4x8" in name for name in names)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_network_keeps_to_it_at_less_time_than_exact(name):
    net = network(name)
    free, exact = planned(net, None), planned(net, None, "exact")
    most, least = raw_error(net, free), raw_error(net, exact)
    assert 5 * least < most
    times = []
    for bound in (0.7 * most, 0.4 * most, 1.3 * least):
        fast = planned(net, bound)
        assert raw_error(net, fast) <= 1.3 * bound  # other noise
        assert 0.5 * bound < chosen(fast)[1] <= bound
        times.append(time(fast))
    assert time(free) <= times[0] <= times[1] <= times[2] < time(exact) and times[0] < times[2]


def test_an_allowance_that_everything_keeps_changes_nothing():
    net = network("ddpmpp")
    free, wide = planned(net, None), planned(net, 1e-3)
    call = raw_inputs(net)
    with torch.no_grad():
        assert torch.equal(free.model(*call), wide.model(*call))
    assert chosen(free)[0] == chosen(wide)[0]


def test_explain_reports_what_was_reached():
    net = network("ddpmpp")
    fast = accelerate(net, max_error=4e-6)
    explain(reset=True)
    with torch.no_grad():
        fast(*inputs(net, 2, 0.7))
    (ran,) = [choice for choice in explain() if choice.op == "conv2d"]
    assert ran.backend == f"accelerated fp32, error {chosen(fast)[1]:.1e} of 4e-06 allowed" and ran.calls


def test_what_cannot_be_reached_is_said_once_and_how_far_one_gets():
    net = network("ddpmpp")
    with pytest.raises(UserError, match=r"max_error is 1e-09, and this network errs by (\S+) with") as refused:
        planned(net, 1e-9).model(*raw_inputs(net))
    assert "\n" not in str(refused.value)
    reachable = float(str(refused.value).split("errs by ")[1].split()[0])
    fast = planned(net, 1.06 * reachable)  # two digits were printed
    with torch.no_grad():
        fast.model(*raw_inputs(net))
    assert chosen(fast)[1] <= 1.06 * reachable


def test_bf16_takes_integers_as_far_as_the_allowance_goes():
    net = network("ddpmpp")

    def fast_integers(shape):
        found = seconds(shape, _algorithms.ALLOWED["bf16"])
        return {a: 0.5 * time if a.int16 else time for a, time in found.items()}

    counts = []
    for bound in (None, 2e-4, 1e-6):
        fast = planned(net, bound, "bf16", fast_integers)
        assert raw_error(net, fast) <= 1.3 * (bound or 1e-2)
        counts.append(sum("int16" in name for name in chosen(fast)[0]))
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_batch_is_measured_on_the_same_noise(n):
    net = network("ddpmpp")
    errors = set()
    for rows in (1, n):  # a class for each image, or one for all
        fast = planned(net, 1e-3)
        x, level, labels = raw_inputs(net, n)
        with torch.no_grad():
            fast.model(x, level, labels[:rows])
        errors.add(chosen(fast)[1])
    alone = planned(net, 1e-3)
    with torch.no_grad():
        alone.model(*raw_inputs(net, 3))
    assert chosen(alone)[1] in errors


def test_gradients_and_pickles_keep_to_it():
    net = network("ddpmpp")
    x, sigma, labels = inputs(net, 2, 0.7)
    want = Exact(net)(x, sigma, labels)
    exact, fast = accelerate(net, "exact"), accelerate(net, max_error=2e-6)
    with torch.enable_grad():
        D = [f(x.clone().requires_grad_(), sigma, labels) for f in (exact, fast)]
    assert torch.equal(*D) and relative_error([D[1].detach()], [want]) <= 1e-6
    again = pickle.loads(pickle.dumps(fast))
    with torch.no_grad():
        again(x, sigma, labels)
    assert chosen(again)[1] <= 2e-6


def test_networks_of_other_projects():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 3, 3, padding=1)

        def forward(self, x, t):
            h = torch.nn.functional.silu(self.a(x) + t[:, None, None, None])
            return self.b(h) if len(x) < 4 else self.b(self.b(h).repeat(1, 11, 1, 1)[:, :32])

    torch.manual_seed(0)
    net = Own().eval().requires_grad_(False)
    fast = accelerate(net, max_error=1e-6)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = net.double()(x.double(), torch.ones(1).double())
        net.float()
        assert relative_error([fast(x, 1.0)], [want]) <= 1.3e-6
        with pytest.raises(UserError, match="same layers in every batch"):
            fast(torch.randn(4, 3, 8, 8), 1.0)


def test_a_network_that_gives_zeros():
    net = network("ddpmpp")
    net.model.dec["8x8_aux_conv"].weight.zero_()
    net.model.dec["8x8_aux_conv"].bias.zero_()
    fast = planned(net, 1e-7)
    with torch.no_grad():
        assert not fast.model(*raw_inputs(net)).any()
    assert chosen(fast)[1] == 0


@pytest.mark.parametrize("wrong", [0, -1e-6, math.inf, math.nan, "1e-6"])
def test_refused(wrong):
    with pytest.raises(UserError, match="max_error is"):
        accelerate(network("ddpmpp"), max_error=wrong)


class Fake:
    error = None

    def __init__(self, chosen):
        self.chosen = chosen


def curve(price):
    """Twenty layers of two algorithms each, of which the faster one errs more: the k-th from the price 10^k on."""
    exact = sum(price >= 10**k for k in range(20))
    return Chosen(Graph({}, [], None), {"exact layers": exact}, 1e-12 * (20 - exact) + 1e-14)


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])  # of what is measured by the sum
def test_the_sum_is_scaled_until_the_measurement_spends_the_allowance(factor):
    tried = []

    def build(chosen):
        tried.append(chosen)
        return Fake(chosen)

    def error(program):
        return factor * math.sqrt(program.chosen.added)

    for bound in (2e-6, 3e-6, 1e-2):
        tried.clear()
        found = within(bound, curve, build, error)
        exact = found.chosen.algorithms["exact layers"]
        assert found.error <= bound and len(tried) <= 6
        # one more fast layer would be too much, or is not worth another plan
        more = factor * math.sqrt(1e-12 * (21 - exact) + 1e-14)
        assert exact == 0 or more > 0.9 * bound
    with pytest.raises(UserError, match=f"errs by {factor * 1e-7:.1e}"):
        within(0.5e-7 * factor, curve, build, error)
    assert cheapest(curve, 0.0).added == 1e-14 and cheapest(curve, 1.0).algorithms == {"exact layers": 0}
