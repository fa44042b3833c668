"""GPU plans: every call's every way agrees with the network, memory is given back, graphs are replayed as recorded.

Without a GPU the same programs run on CPU tensors, and a stand-in records the calls of a graph.
"""

import contextlib
import copy
import threading

import pytest
import torch

from edm_fast import accelerate, backend, edm_sampler
from edm_fast.errors import UserError
from edm_fast.evaluation._networks import Exact, inputs, relative_error
from edm_fast.ops.attention import AttentionArgs
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.plan import _gpu_convolutions, _gpu_program, _implementations
from edm_fast.plan._graph import Fused, Node, SeparateQKVArgs, map_tensors, separate_attention
from edm_fast.plan._weights import Weights
from helpers import taped_graph
from helpers.planned_networks import DEVICE, NETWORKS, first, moved, network, places, planned

LIMITS = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}


def last(key, ways):
    return {name: 2 - place for name, place in places(ways).items()}


def steps_of(fast):
    (program,) = next(iter(fast.model.pool.programs.values()))
    return program.steps


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_close_to_float64(name, precision):
    net = network(name)
    x, sigma, labels = inputs(net, 2, 0.7)
    want = Exact(net)(x, sigma, labels)
    with torch.no_grad():
        found = planned(net, precision)(*moved(x, sigma, labels))
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert relative_error([found.cpu()], [want]) <= LIMITS[precision]


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_is_the_network_to_the_bit(name):
    net = network(name)
    x, sigma, labels = moved(*inputs(net, 2, 0.7))
    own = copy.deepcopy(net).to(DEVICE)
    with torch.no_grad():
        assert torch.equal(planned(net, "exact")(x, sigma, labels), reference(own, x, sigma, labels))


def reference(net, *args):
    from edm_fast import use_backend

    with use_backend("reference"), _gpu_program.tensor_float(False):
        return net(*args)


class Checked:
    """A clock by which each call's last way is the fastest; it compares the ways with the first one in float64."""

    def __init__(self, eps):
        self.eps = eps
        self.keys = set()
        self.first = None

    def __call__(self, key, ways):
        more = any("apply" in name or "statistics" in name for name in ways)  # of the call before
        self.first = self.first if more else next(iter(ways.values()))
        if (key, more) not in self.keys:
            self.keys.add((key, more))
            want = self.first.func(*map_tensors(torch.Tensor.double, self.first.args))
            for name in ways:
                if "reference+" in name or "+reference" in name or f"{name}+statistics" in ways:
                    continue  # half of it is a way of another call, or all of it is in another way
                y, *stats = ways[name]() if name.endswith("statistics") else [ways[name]()]
                assert relative_error([y.cpu()], [want.cpu()]) < 1e-5, f"{name} {key}"
                for found in stats:
                    expected = _implementations.statistics_of(y, found.shape[2], self.eps)
                    assert relative_error([found.cpu()], [expected.cpu()]) < 2e-6, f"{name} {key}"
        return last(key, ways)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_every_way_of_every_call(name):
    """The fused kernels, where they take a call (on the CPU in Triton's interpreter), give the same image."""
    small = {"img_resolution": 4, "attn_resolutions": [2]}  # the interpreter takes its time
    net = network(name, **small, **({} if name == "adm" else {"model_channels": 16}))  # of 16, ADM would have no head
    x, sigma, labels = moved(*inputs(net, 1, 0.7))
    clock, kinds = Checked(1e-6) if name == "ddpmpp" else last, set()

    def measure(key, calls):
        kinds.add(key.split()[2])
        return clock(key, calls)

    with torch.no_grad():
        fast, other = planned(net, "fp32"), planned(net, "fp32", measure)
        a, b = fast(x, sigma, labels), other(x, sigma, labels)
    assert {"attention", "group_norm_silu", "conv2d", "pair"} <= kinds
    names = {step.candidate.name for step in steps_of(other)}
    assert {"apply", "apply+merged", "fused+statistics", "triton"} <= names
    merged = [step.node for step in steps_of(other) if "merged" in step.candidate.name]
    normalised = {(node.first.args.silu, node.second.args.weight.shape[-1]) for node in merged if node.rule == "norm"}
    assert normalised == {(False, 1)}
    assert relative_error([b.cpu()], [a.cpu()]) < 1e-5


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_winograd_and_statistics_in_a_plan(precision):
    """A convolution leaves the statistics of its image as it was rounded: what the norm would have read."""
    net = network("ddpmpp", img_resolution=4, attn_resolutions=[2], model_channels=16)
    x, sigma, labels = inputs(net, 1, 0.7)
    want = Exact(net)(x, sigma, labels)
    with torch.no_grad():
        fast = planned(net, precision, last)
        found = fast(*moved(x, sigma, labels))
    merged = "apply+merged-winograd-bmm+statistics"
    assert {merged, "apply", "fused+statistics"} <= {step.candidate.name for step in steps_of(fast)}
    assert relative_error([found.cpu()], [want]) <= LIMITS[precision]


def test_ways_of_a_convolution(monkeypatch):
    """Winograd where products are coarse, of 3x3; statistics of whole tiles; the norm where it is not taken nine
    times."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def ways(dtype=torch.float16, k=3, size=8, channels=32, norm=None):
        x, weight = torch.empty(1, channels, size, size, dtype=dtype), torch.empty(32, channels, k, k)
        found = _gpu_convolutions.ways(
            Conv2dArgs(x, weight), norm and GroupNormSiluArgs(x, None, None, 4, silu=norm[0])
        )
        return {way.name: (way.merged, way.leaves_statistics) for way in found}

    direct = {"tail": ("", True), "fused": ("merged", True)}
    assert ways(torch.float32) == ways(k=1) == ways(channels=3) == ways(k=1, norm=[True]) == direct
    for size in (8, 6):
        own = {name: (f"merged-{name}", size == 8) for name in ("winograd", "winograd-bmm")}
        assert ways(size=size) == ways(torch.bfloat16, size=size) == ways(size=size, norm=[False]) == direct | own
        assert ways(size=size, norm=[True]) == direct | {"fused": ("", True)} | own
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert ways(torch.float32) == ways() and ways(torch.float32, k=1) == direct


def test_weights_are_laid_out_from_the_network_s_own():
    """Not from the copy in the dtype of the plan, which was rounded."""
    own = torch.randn(2, 3, 1, 1)
    weights = Weights(lambda tensor, layout: tensor.bfloat16() if layout is None else tensor + 0, {})
    assert torch.equal(weights(weights(own), "packed"), own) and weights(own).dtype == torch.bfloat16
    assert weights(weights(own), "packed") is weights(own, "packed")
    weights.used.clear()
    weights(own, "phases")
    weights.drop_unused()
    assert [key[-1] for key in weights.held] == [None, "phases"]


def test_attention_in_two_orders_of_channels_is_two_rows_of_a_table():
    qkv = torch.empty(1, 12, 2, 2)
    nodes = [Node(backend.ops()["attention"], AttentionArgs(qkv, 2), [])]
    nodes.append(Node(separate_attention, SeparateQKVArgs(qkv, 2), []))
    assert len({_implementations.described(node, node.args) for node in nodes}) == 2


def test_values_are_dropped_after_their_last_use():
    net = network("ddpmpp")
    x, sigma, labels = moved(*inputs(net, 1, 0.7))
    fast = planned(net, "bf16")
    with torch.no_grad():
        fast(x, sigma, labels)
    (program,) = next(iter(fast.model.pool.programs.values()))
    dead = [value for step in program.steps for value in step.dead]
    made = {value for step in program.steps for value in (*step.node.inputs(), *step.node.outputs)}
    assert len(dead) == len(set(dead)) and set(dead) == made - {program.output}


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_embeddings_are_one_product(name):
    """In the dtype of the images, with the biases of the convolutions that add it."""
    net = network(name)
    fast = planned(net, "fp16")
    x, sigma, labels = moved(*inputs(net, 1, 0.7))
    with torch.no_grad():
        fast(x, sigma, labels)
    blocks = [m for m in net.model.modules() if type(m).__name__ == "UNetBlock"]
    nodes = [step.node for step in steps_of(fast)]
    (joined,) = [n for n in nodes if isinstance(n, Node) and getattr(n.function, "__name__", "") == "products"]
    assert len(joined.outputs) == len(blocks)
    rows = joined.function(torch.ones(joined.inputs()[0].shape, device=DEVICE))
    assert {row.dtype for row in rows} == {torch.float16}
    ends = [node.second.args if isinstance(node, Fused) else node.args for node in nodes]
    added = [args.bias for args in ends if isinstance(args, Conv2dArgs) and args.emb is not None]
    assert added == [None] * (len(blocks) if name == "ddpmpp" else 0)


def test_results_are_fresh_and_inputs_untouched():
    net = network("ddpmpp")
    x, sigma, labels = moved(*inputs(net, 2, 0.7))
    fast = planned(net, "fp32")
    before = x.clone()
    with torch.no_grad():
        a = fast(x, sigma, labels)
        kept = a.clone()
        b = fast(-x, sigma, labels)
        again = fast(x, sigma, labels)
    assert torch.equal(a, kept) and torch.equal(a, again) and not torch.equal(a, b) and torch.equal(x, before)


def test_weights_are_cast_once_for_all_programs():
    net = network("ddpmpp")
    fast = planned(net, "fp16")
    with torch.no_grad():
        fast(*moved(*inputs(net, 1, 0.7)))
        made = len(fast.model.planner.prepared)
        fast(*moved(*inputs(net, 2, 0.7)))
    separated = sum(1 for m in net.model.modules() if hasattr(m, "qkv") and m.num_heads) * 2  # made by `rewritten`
    assert len(fast.model.planner.prepared) - made <= separated


def test_what_a_program_made_goes_with_it(monkeypatch):
    finished = []
    monkeypatch.setattr(
        _gpu_program.GpuProgram, "finish", lambda program: finished.append(program.inputs["x"].shape[0])
    )
    net = network("ddpmpp")
    fast = planned(net, "fp16")
    for n in (2, 1, 3, 2, 4, 5, 6, 1):
        x, sigma, labels = moved(*inputs(net, n, 0.7))
        with torch.no_grad():
            fast(x, sigma, labels)
    held = {
        made for programs in fast.model.pool.programs.values() for p in programs for made in p.weights.held.values()
    }
    assert {*fast.model.planner.prepared.values()} == held
    assert finished == [1, 3, 2]  # the last call of a program is over before its memory goes to others


@pytest.mark.skipif(torch.cuda.is_available(), reason="the graph itself is there")
def test_with_and_without_a_stand_in_for_the_graph(monkeypatch):
    taped_graph.put_in_place(monkeypatch)
    net = network("adm")
    x, sigma, labels = inputs(net, 2, 0.7)
    made = taped_graph.Captured.made
    with torch.no_grad():
        plain, graphed = planned(net, "bf16", cuda_graph=False), planned(net, "bf16")
        for scale in (1, 0.5, 2):
            assert torch.equal(plain(x * scale, sigma, labels), graphed(x * scale, sigma, labels))
    assert taped_graph.Captured.made == made + 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_measures_its_algorithms_in_plans(monkeypatch, deterministic):
    """Unless its caller asked for the same ones every time."""
    cudnn, seen = torch.backends.cudnn, set()
    monkeypatch.setattr(cudnn, "deterministic", deterministic)

    def measure(key, ways):
        seen.add((cudnn.benchmark, key.endswith("benchmark")))
        return first(key, ways)

    net, before = network("ddpmpp"), cudnn.benchmark
    planned(net, "fp32", measure)(*moved(*inputs(net, 1, 0.7)))
    assert seen == {(not deterministic, not deterministic)} and cudnn.benchmark is before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["exact", *LIMITS])
def test_graph_gives_the_same_bits(precision):
    net = network("ddpmpp").to(DEVICE)
    x, sigma, labels = moved(*inputs(net, 3, 0.7))
    with torch.no_grad():
        plain = accelerate(net, precision, cuda_graph=False)(x, sigma, labels)
        fast = accelerate(net, precision)
        for _ in range(3):
            assert torch.equal(plain, fast(x, sigma, labels))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_streams_and_threads(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # or its algorithms are timed in each thread
    net = network("ddpmpp").to(DEVICE)
    fast = accelerate(net, "fp16")
    calls = [moved(*inputs(net, n, s)) for n in (1, 2) for s in (0.3, 0.7)]
    with torch.no_grad():
        want = [fast(*call) for call in calls]
    found = {}

    def work(i):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            found[i] = [fast(*calls[i % len(calls)]) for _ in range(5)]
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in found.items():
        assert all(torch.equal(result, want[i % len(calls)]) for result in results)


def test_sampling_in_half_precision_stays_close():
    net = network("ddpmpp")
    latents = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    labels = torch.eye(4)[:2].to(DEVICE)
    images = [
        edm_sampler(n, latents, labels, num_steps=4) for n in (copy.deepcopy(net).to(DEVICE), planned(net, "fp16"))
    ]
    assert relative_error([images[1].cpu()], [images[0].cpu()]) < 2e-2


def test_switches_are_put_back():
    before = torch.backends.cudnn.allow_tf32
    with contextlib.suppress(ZeroDivisionError), _gpu_program.tensor_float(not before):
        assert torch.backends.cudnn.allow_tf32 is not before
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 is before


def test_refusals():
    net = network("ddpmpp")
    with pytest.raises(UserError, match="fp16.*cpu.*expected one of exact, fp32, bf16"):
        accelerate(net, "fp16")
    with pytest.raises(UserError, match="meta"):
        accelerate(copy.deepcopy(net).to("meta"), "fp16")
