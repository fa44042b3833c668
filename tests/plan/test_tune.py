"""Candidates that do not work: one that raises, wrong numbers, NaN, another shape. They are dropped, the plan runs."""

import dataclasses
import functools
import math

import pytest
import torch

from edm_fast import accelerate, backend, native
from edm_fast.errors import UserError
from edm_fast.plan import _table, _tune
from edm_fast.plan._algorithms import Shape
from edm_fast.plan._tune import MeasuredAlgorithms, MeasuredImplementations
from helpers import native_conv as nc
from helpers.planned_networks import network, planned

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tables(monkeypatch, tmp_path):
    """No table is left in memory; those of this test are in its folder."""
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB/HBM3")
    _table._tables.clear()
    yield
    _table._tables.clear()


def clock(call, repeats):
    """Seconds by name, in place of events on a GPU."""
    call()
    return {"torch": 3.0, "fused": 1.0, "slow": 5.0}.get(call.func.__name__, 0.1)


def torch_way(x, weight):
    return x @ weight


def fused(x, weight):
    return (x.mT.contiguous().mT @ weight).clone()


def raises(x, weight):
    raise RuntimeError("out of resource: shared memory\nRequired: 262144")


def wrong(x, weight):
    return torch_way(x, weight) * 1.2


def one_wrong(x, weight):
    y = torch_way(x, weight)
    y[-1, -1] += 16
    return y


def not_a_number(x, weight):
    return torch_way(x, weight) * math.nan


def other_shape(x, weight):
    return torch_way(x, weight)[:1]  # which would be copied to all rows


def nothing(x, weight):
    return None


KINDS = functools.partial, int
PLANTED = [raises, wrong, one_wrong, not_a_number, other_shape, nothing]


def ways(*functions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 64, generator=generator).to(dtype) for _ in range(2))
    return {f.__name__: functools.partial(f, x=x, weight=weight) for f in (torch_way, *functions)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("planted", PLANTED)
def test_a_way_that_fails_is_dropped(planted, dtype):
    measure = MeasuredImplementations(CPU, clock=clock)
    assert measure("conv2d 1", ways(planted, fused, dtype=dtype)).keys() == {"torch_way", "fused"}
    reason = _table.dropped("conv2d")[planted.__name__]
    assert reason.startswith("dropped while tuning: it") and "\n" not in reason
    assert not _table.dropped("attention")
    # the next process knows, and does not try it
    _table._tables.clear()
    tried = ways(planted, fused)
    tried[planted.__name__] = functools.partial(pytest.fail, "it was run again")
    assert measure("conv2d 1", tried).keys() == {"torch_way", "fused"}
    assert planted.__name__ in _table.dropped("conv2d")


def test_torch_runs_where_every_other_way_fails():
    assert MeasuredImplementations(CPU, clock=clock)("conv2d 1", ways(*PLANTED)).keys() == {"torch_way"}
    with pytest.raises(RuntimeError, match="out of resource"):  # a plan cannot do without that one
        MeasuredImplementations(CPU, clock=clock)("conv2d 2", {"torch_way": ways(raises)["raises"]})


def test_the_fastest_way_is_remembered(tmp_path):
    seconds = {"torch_way": 2.0, "fused": 1.0}
    measure = MeasuredImplementations(CPU, tmp_path, lambda call, repeats: seconds[call.func.__name__])

    def fastest(key):
        found = measure(key, ways(fused))
        return min(found, key=found.get)

    assert fastest("conv 1") == "fused"
    _table._tables.clear()  # as in a new process
    seconds["torch_way"] = 0.5
    assert fastest("conv 1") == "fused" and fastest("conv 2") == "torch_way"
    (path,) = (tmp_path / "plans").glob("*.json")
    assert "H100_80GB_HBM3" in path.name and torch.__version__.split("+")[0] in path.name


class Graph:
    """In place of a CUDA graph: it makes the calls of a function again."""

    recording = False

    def __init__(self, function, device, beside=None):
        Graph.recording = True
        try:
            function()
        finally:
            Graph.recording = False
        self.function = function

    def __call__(self):
        self.function()


def waits(x, weight):
    assert not Graph.recording, "operation not permitted when stream is capturing"
    return torch_way(x, weight)


def test_seconds_are_those_of_graphs_of_several_calls():
    """What cannot be one is dropped, and what is far slower than another is timed no further."""
    each = {"torch_way": 1e-3, "fused": 1e-4, "slow": 4e-4, "one": 1.0, "waits": 1e-5}
    turns = []

    def clock(call, repeats):
        """In a graph calls take a tenth of the time that Python takes for each of them alone."""
        if not isinstance(call, Graph):
            return 10 * each[call.func.__name__]
        several, count = call.function.__closure__, 0
        function, count = (
            next(c.cell_contents for c in several if isinstance(c.cell_contents, kind)) for kind in KINDS
        )
        turns.append(function.func.__name__)
        return count * each[function.func.__name__]

    def slow(x, weight):
        return torch_way(x, weight)

    measure = MeasuredImplementations(CPU, clock=clock, record=Graph)
    found = measure("conv2d 1", ways(fused, slow, waits))
    assert found == pytest.approx({"torch_way": 1e-3, "fused": 1e-4, "slow": 4e-4})
    assert turns.count("slow") == turns.count("torch_way") == 2 and turns.count("fused") >= _tune.GPU_ROUNDS
    assert "cannot be recorded: it raised AssertionError" in _table.dropped("conv2d")["waits"]
    assert MeasuredImplementations(CPU, clock=clock, record=Graph)("conv2d 2", {"waits": ways(waits)["waits"]})


def test_what_fails_later_is_dropped_for_the_next_process_too():
    measure = MeasuredImplementations(CPU, clock=clock)
    assert measure("conv2d 1", ways(fused)).keys() == {"torch_way", "fused"}
    measure.drop("fused conv2d 1", "it raised RuntimeError: out of resource")
    assert "out of resource" in _table.dropped("conv2d")["fused"]
    for _ in range(2):
        assert measure("conv2d 1", ways(fused)).keys() == {"torch_way"}
        _table._tables.clear()


def test_statistics_that_are_not_those_of_the_image():
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)) + 3

    def plain():
        return x.clone()

    def leaves(change):
        var, mean = torch.var_mean(x.unflatten(1, (2, 4)), (2, 3, 4), correction=0)
        return x.clone(), torch.stack((mean, (var + 1e-5).rsqrt())) * change

    changes = {"right": 1.0, "wrong": 1.1, "nan": math.nan, "rstd": torch.tensor([1.0, 0.8])[:, None, None]}
    calls = {name: functools.partial(leaves, change) for name, change in changes.items()}
    found = MeasuredImplementations(CPU, clock=lambda call, repeats: 1.0)(
        "conv2d 1", {"torch": functools.partial(plain), **calls}
    )
    assert found.keys() == {"torch", "right"}


def test_values_beyond_the_range_of_halves_are_not_compared():
    measure = MeasuredImplementations(CPU, clock=clock)
    calls = ways(fused, wrong, dtype=torch.float16)
    for call in calls.values():
        call.keywords["x"][0] = math.inf
    assert measure("conv2d 1", calls).keys() == {"torch_way", "fused"}


def nearly(x, weight):
    return torch_way(x, weight) * (1 + 4e-6)  # more than four roundings, as of a long sum in another order


def test_where_there_is_no_memory_for_an_exact_result(monkeypatch):
    def widened(*args):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(_tune, "widened", widened)
    found = MeasuredImplementations(CPU, clock=clock)("conv2d 1", ways(nearly, *PLANTED))
    assert found.keys() == {"torch_way", "nearly"}


def test_a_gpu_that_stops_is_one_line_and_the_next_process_knows(monkeypatch):
    class Stream:
        def synchronize(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    with pytest.raises(UserError, match="the GPU stopped when raises was tried.*start again"):
        MeasuredImplementations(torch.device("cuda"), clock=clock)("conv2d 1", ways(raises, fused))
    _table._tables.clear()
    assert MeasuredImplementations(CPU, clock=clock)("conv2d 1", ways(raises, fused)).keys() == {"torch_way", "fused"}
    assert "shared memory" in _table.dropped("conv2d")["raises"]
    with _table.at_once():  # not even then: it would stop every process that tries it
        MeasuredImplementations(CPU, clock=clock)(
            "conv2d 1", {**ways(fused), "raises": functools.partial(pytest.fail, "tried")}
        )


@pytest.mark.parametrize("planted", [False, True])
@nc.needs_native
def test_a_plan_for_gpus_finds_its_ways(monkeypatch, planted):
    """On the CPU, whose native implementations stand in for kernels of a GPU."""
    net = network("ddpmpp")
    x, labels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.eye(4)[:2]
    with torch.no_grad(), backend.use_backend("reference"):
        expected = net(x, torch.tensor(0.7), labels)
    for op in backend.ops().values():  # Triton's interpreter takes minutes
        if "triton" in op.implementations:
            slow = dataclasses.replace(op.implementations["triton"], reason=lambda args: "it is slow here")
            monkeypatch.setitem(op.implementations, "triton", slow)
    op = backend.ops()["group_norm_silu"]
    native = op.implementations["cpu"]
    if planted:
        spoilt = dataclasses.replace(native, forward=lambda args: native.forward(args) * 1.1)
        monkeypatch.setitem(op.implementations, "cpu", spoilt)
    fast = planned(net, "fp32", MeasuredImplementations(CPU, clock=lambda call, repeats: call() is None or 1.0))
    got = fast(x, torch.tensor(0.7), labels)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    measured = [row for table in _table.tables() for row in table.rows.items()]
    faults = {key.split()[0] for key, row in measured if row.fault}
    assert {"reference", "cpu"} <= {key.split()[0] for key, row in measured if not row.fault}
    assert all("cpu" in name for name in faults) and bool(faults) == planted
    assert ("cpu" in _table.dropped("group_norm_silu")) == planted


ALL = [*native.ALGORITHMS]


def plant(monkeypatch, fault, *names):
    """Let these algorithms fail in one way or another."""
    lower = _tune.lower_conv2d

    def lowered(y, x, weight, algorithm, *sizes, **memory):
        step = lower(y, x, weight, algorithm, *sizes, **memory)
        if algorithm.name not in names:
            return step
        if fault == "does not launch":
            raise RuntimeError("no such kernel")
        return functools.partial(spoilt, step, y.permute(0, 2, 3, 1).view(-1))

    def spoilt(step, pixels, threads):
        if fault == "raises":
            raise RuntimeError("no memory")
        if fault != "writes nothing":
            step(threads)
        if fault == "wrong":
            pixels[3] += 0.01
        if fault == "nan":
            pixels[3] = math.nan

    monkeypatch.setattr(_tune, "lower_conv2d", lowered)


@nc.needs_native
@pytest.mark.parametrize("fault", ["does not launch", "raises", "wrong", "nan", "writes nothing"])
@pytest.mark.parametrize("doubled", [False, True])
def test_an_algorithm_that_fails_is_dropped(monkeypatch, fault, doubled):
    plant(monkeypatch, fault, "winograd2x2", "winograd4x4", "winograd2x2-doubled")
    shape = Shape(2, 8, 6, 6, 8, 3, 1, doubled)
    found = MeasuredAlgorithms("exact")(shape)
    used = {algorithm.name for algorithm in found}
    assert "direct" in used and not {"winograd2x2", "winograd2x2-doubled"} & used
    assert _table.dropped("conv2d")["winograd2x2"].startswith("dropped while tuning: it")
    _table._tables.clear()
    monkeypatch.setattr(_tune, "measure", lambda *args: pytest.fail("it was run again"))
    assert MeasuredAlgorithms("exact")(shape) == found


@nc.needs_native
@pytest.mark.parametrize("some", [["winograd2x2", "winograd2x2-unpacked"], ALL], ids=["some", "all"])
def test_a_plan_runs_without_the_algorithms_that_fail(monkeypatch, some):
    """Down to torch, where there is none left; explain() has the reasons."""
    net = network("ddpmpp")
    x, sigma = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.7)
    labels = torch.eye(4)[:2]
    with torch.no_grad(), backend.use_backend("reference"):
        expected = net(x, sigma, labels)
    plant(monkeypatch, "wrong", *some)
    fast = accelerate(net, "exact")
    backend.explain(reset=True)
    got = fast(x, sigma, labels)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    (choice,) = [choice for choice in backend.explain(reset=True) if choice.op == "conv2d"]
    assert "dropped while tuning: its error is" in choice.reasons["winograd2x2"]
    used = {a.name for programs in fast.model.pool.programs.values() for p in programs for _, a in p.algorithms}
    assert not used & {*some} - {"direct"}
