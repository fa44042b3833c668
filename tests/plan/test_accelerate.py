"""accelerate(): close to float64, the same bits in every batch, safe among threads; what it takes and refuses."""

import concurrent.futures
import copy
import io
import math
import pickle
import warnings

import pytest
import torch

from edm_fast import accelerate, edm_sampler, explain, native
from edm_fast.errors import UserError
from edm_fast.evaluation._networks import Exact, inputs, relative_error
from edm_fast.plan import _tune
from edm_fast.plan._pool import MAX_PROGRAMS
from helpers import native_conv as nc
from helpers.planned_networks import NETWORKS, network, on_algorithm
from helpers.tiny_networks import tiny

pytestmark = nc.needs_native


def augmented(net, batch):
    if getattr(net.model, "map_augment", None) is None:
        return {}
    return {"augment_labels": torch.randn(batch, 9, generator=torch.Generator().manual_seed(3))}


@pytest.mark.parametrize("name", NETWORKS)
def test_close_to_float64(name):
    net = network(name)
    truth = Exact(net)
    x, sigma, labels = inputs(net, 2, 0.7)
    want = truth(x, sigma, labels)
    plain = relative_error([net(x, sigma, labels)], [want])
    for precision, most in (("exact", 2 * plain + 4 * 2**-24), ("fp32", 1e-5), ("bf16", 1e-2)):
        with torch.no_grad():
            assert relative_error([accelerate(net, precision)(x, sigma, labels)], [want]) <= most, precision


def packed_memory(fast):
    (program,) = next(iter(fast.model.pool.programs.values()))
    packed = [prepared.tensor for key, prepared in fast.model.planner.prepared.items() if key[-1] is not None]
    return sum(t.numel() for t in packed), program.arena.numel()


@pytest.mark.parametrize("algorithm", ["winograd4x4", "winograd4x4-doubled"])
@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_packed_limit_saves_memory_and_changes_no_bit(name, algorithm):
    net = network(name)
    call = inputs(net, 2, 0.7)
    weights = sum(m.weight.numel() for m in net.model.modules() if isinstance(getattr(m, "weight", None), torch.Tensor))
    with torch.no_grad():
        free, tight, none = (on_algorithm(net, algorithm, limit) for limit in (math.inf, 1.1, 0))
        want = free(*call)
        assert torch.equal(tight(*call), want) and torch.equal(none(*call), want)
        assert torch.equal(tight(*call), want)  # its scratch memory serves other layers in between
    (all_of_it, arena), (some, wider), (least, _) = map(packed_memory, (free, tight, none))
    assert least <= some < all_of_it and some - least <= 1.1 * weights
    assert least < some or algorithm != "winograd4x4"  # a single layer is merged: all of it or nothing
    assert wider + some < arena + all_of_it
    with pytest.raises(UserError, match="packed_limit"):
        accelerate(net, packed_limit=float("nan"))


def test_layers_of_small_networks_are_measured_in_warm_caches(monkeypatch):
    asked = []

    class Recorded(_tune.MeasuredAlgorithms):
        def __init__(self, precision, folder=None, cold=True):
            super().__init__(precision, folder, cold)
            asked.append(cold)

    monkeypatch.setattr("edm_fast.plan._cpu.MeasuredAlgorithms", Recorded)
    net = network("ddpmpp")
    with torch.no_grad():
        accelerate(net)(*inputs(net, 2, 0.7))
        monkeypatch.setattr("edm_fast.plan._cpu.SMALL_NETWORK", 1000)
        accelerate(net)(*inputs(net, 2, 0.7))
    assert asked == [False, True]


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
@pytest.mark.parametrize(
    ("algorithm", "most"),
    [("winograd2x2-doubled", 1e-5), ("winograd4x4-doubled", 1e-5), ("winograd4x4-doubled-int16", 1e-2)],
)
def test_upsampling_merged_with_its_convolution(name, algorithm, most):
    net = network(name)
    call = inputs(net, 2, 0.7)
    with torch.no_grad():
        fast, apart = on_algorithm(net, algorithm), on_algorithm(net, "direct")
        assert relative_error([fast(*call)], [Exact(net)(*call)]) <= most
        apart(*call)
    (program,), (other,) = (next(iter(f.model.pool.programs.values())) for f in (fast, apart))
    merged = [shape for shape, found in program.algorithms if found.name == algorithm]
    assert merged == [shape for shape, _ in program.algorithms if shape.doubled]
    assert len(merged) == 1 and len(program.steps) == len(other.steps) - 1


def test_many_images_of_a_small_network_run_a_few_at_a_time(monkeypatch):
    net = network("ddpmpp")
    x, sigma, labels = inputs(net, 7, 0.7)
    with torch.no_grad():
        whole = on_algorithm(net, "winograd4x4")
        whole.model.planner.images_at_once = lambda graph: 7
        parts, wide = on_algorithm(net, "winograd4x4"), on_algorithm(net, "winograd4x4")
        monkeypatch.setattr(
            "edm_fast.plan._cpu.IMAGES_AT_ONCE", 3 * 4 * 96 * 64
        )  # joined, 96 channels of 8x8: 3 images
        assert torch.equal(parts(x, sigma, labels), whole(x, sigma, labels))
        assert {dict(key)["x"][0] for key in parts.model.pool.programs} == {3, 1}
        assert torch.equal(parts(x, sigma, labels[:1]), whole(x, sigma, labels[:1]))
        monkeypatch.setattr("edm_fast.plan._cpu.SMALL_NETWORK", 1000)
        wide(x, sigma, labels)
        assert {dict(key)["x"][0] for key in wide.model.pool.programs} == {7}


@pytest.mark.parametrize("name", NETWORKS)
def test_arguments_mean_what_they_do_to_the_network(name):
    net = network(name)
    fast = accelerate(net)
    x, sigma, labels = inputs(net, 3, 0.7)
    levels = net.round_sigma(torch.tensor([0.1, 0.7, 2.0]))
    calls = [((x, sigma), {}), ((x.double(), levels, labels), {}), ((x, levels), {"class_labels": None})]
    calls += [((x, sigma, labels, True), augmented(net, 3)), ((x, 0.7), {"force_fp32": True})]
    if net.label_dim:
        calls.append(((x, sigma, labels[:1]), {}))  # one for all
    for args, kwargs in calls:
        got, want = fast(*args, **kwargs), net(*args, **kwargs)
        assert got.dtype == want.dtype and got.is_contiguous()
        assert relative_error([got], [want]) <= 1e-5
    assert fast(x[:0], levels[:0]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("algorithm", native.ALGORITHMS)
def test_an_image_has_the_same_bits_in_every_batch_on_any_threads(algorithm):
    net = network("ddpmpp")
    fast = on_algorithm(net, algorithm)
    x, _, labels = inputs(net, 5, 0.7)
    sigma = torch.tensor([0.1, 0.7, 2.0, 0.3, 5.0])
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            found.append(fast(x, sigma, labels))
        for part in ([2], [1, 2], [4, 0, 2]):
            found.append(found[0].index_copy(0, torch.tensor(part), fast(x[part], sigma[part], labels[part])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_plans_of_other_shapes_take_their_own_weights():
    # weights that a rewrite has made are freed with their plan, and others may come to lie where they were
    net = network("ddpmpp", num_blocks=2)
    fast = accelerate(net)
    for n in (2, 1, 3, 2, 4, 5, 6, 1):
        x, sigma, labels = inputs(net, n, 0.7)
        assert relative_error([fast(x, sigma, labels)], [net(x, sigma, labels)]) <= 1e-5, n
    programs = [program for found in fast.model.pool.programs.values() for program in found]
    held = {prepared for program in programs for prepared in program.weights.held.values()}
    assert {*fast.model.planner.prepared.values()} == held


def test_a_plan_in_use_is_not_given_to_another_thread():
    net = network("ddpmpp-vp")
    model = accelerate(net, "exact").model
    net_inputs = {"x": torch.ones(1, 3, 8, 8), "noise_labels": torch.ones(1)}
    first = model(**net_inputs)
    kept = first.clone()
    model(net_inputs["x"] + 1, net_inputs["noise_labels"])
    assert torch.equal(first, kept) and first.is_contiguous()  # not a part of the plan's memory
    (key,) = model.pool.programs
    one, other = (model.pool.take(key, model.program) for _ in range(2))
    assert one is not other and one.arena.data_ptr() != other.arena.data_ptr()


def test_threads_may_call_at_the_same_time():
    net = network("ddpmpp")
    fast = on_algorithm(net, "winograd2x2")
    x, sigma, labels = inputs(net, 8, 0.7)
    parts = [slice(i % 6, i % 6 + 1 + i % 3) for i in range(24)]
    want = fast(x, sigma, labels)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda part: fast(x[part], sigma, labels[part]), parts))
    assert all(torch.equal(got, want[part]) for got, part in zip(found, parts))
    assert sum(map(len, fast.model.pool.programs.values())) <= MAX_PROGRAMS


def test_few_plans_are_kept():
    net = network("ddpmpp-vp")
    fast = accelerate(net, "exact")
    for n in range(1, MAX_PROGRAMS + 4):
        fast(*inputs(net, n, 0.7)[:2])
    assert sum(map(len, fast.model.pool.programs.values())) == MAX_PROGRAMS
    shapes = [dict(key)["x"][0] for key in fast.model.pool.programs]
    assert shapes == [4, 5, 6, 7]  # the latest


def test_the_sampler_draws_the_same_images():
    net = tiny(label_dim=4)
    latents = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = edm_sampler(net, latents, torch.eye(4))
    gaps = {p: (edm_sampler(accelerate(net, p), latents, torch.eye(4)) - plain).abs() for p in ("fp32", "bf16")}
    assert gaps["fp32"].max() <= 2 / 255 and gaps["bf16"].mean() < 2 / 255  # of [-1, 1]


class Published(torch.nn.Module):
    """Stands in for a network of the published code, which is not of this package."""

    def __init__(self, net):
        super().__init__()
        self.model, self.init_kwargs = net.model, net.init_kwargs
        self.eval()


def test_networks_of_the_published_class_are_taken():
    net = tiny(label_dim=4)
    theirs = Published(net)
    theirs.__class__ = type("EDMPrecond", (Published,), {})
    x, sigma, labels = inputs(net, 2, 0.7)
    assert torch.equal(accelerate(theirs)(x, sigma, labels), accelerate(net)(x, sigma, labels))
    theirs.init_kwargs = {**net.init_kwargs, "model_channels": 64}
    with pytest.raises(UserError, match="EDMPrecond whose weights.*size mismatch") as refused:
        accelerate(theirs)
    assert "\n" not in str(refused.value)


REFUSED = {
    "another network": (lambda net: accelerate(torch.nn.Linear(2, 2)), "Linear"),
    "a name alone": (lambda net: accelerate(type("EDMPrecond", (), {})()), "EDMPrecond"),
    "training mode": (lambda net: accelerate(net.train()), "training mode"),
    "training mode later": (lambda net: call(accelerate(net), lambda: net.train()), "training mode"),
    "precision": (lambda net: accelerate(net, "tf32"), "tf32"),
    "device": (lambda net: accelerate(net.to("meta")), "meta"),
    "input elsewhere": (lambda net: accelerate(net)(torch.ones(1, 3, 8, 8, device="meta"), 0.7), "another device"),
    "weights": (lambda net: accelerate(net).load_state_dict(net.state_dict()), "weights"),
    "float64": (lambda net: accelerate(net).double(), "float64"),
    "train()": (lambda net: accelerate(net).train(), "trained"),
    "compiled": (lambda net: accelerate(torch.compile(net, backend="eager")), "torch.compile made, net._orig_mod"),
    "parallel": (lambda net: accelerate(torch.nn.DataParallel(net)), "net.module"),
    "averaged": (lambda net: accelerate(torch.optim.swa_utils.AveragedModel(net)), "net.module"),
    "raw network": (lambda net: accelerate(net.model), "network around it"),
    "raw plan": (lambda net: accelerate(accelerate(net).model), "network around it"),
    "a path": (lambda net: accelerate("model.pkl"), "edm_fast.load"),
    "limit": (lambda net: accelerate(net, packed_limit="1"), "packed_limit"),
    "too many labels": (lambda net: rows(net, class_labels=(3, 4)), "class_labels has 3 rows; expected 2"),
    "labels without rows": (lambda net: rows(net, class_labels=(2,)), "class_labels has shape"),
    "too many levels": (lambda net: rows(net, noise_labels=(3,)), "noise_labels has 3 rows; expected 2"),
    "levels in columns": (lambda net: rows(net, noise_labels=(2, 1)), "noise_labels has shape"),
    "too many augmentations": (lambda net: rows(net, augment_labels=(3, 9)), "augment_labels has 3 rows"),
    "a level that is a number": (lambda net: accelerate(net).model(torch.ones(1, 3, 8, 8), 0.7), "float"),
    "one image": (lambda net: rows(net, x=(3, 8, 8)), "x has shape"),
}


def rows(net, **shapes):
    """A plan, called itself, with an input of another shape than the others fit to."""
    shapes = {"x": (2, 3, 8, 8), "noise_labels": (2,), **shapes}
    return accelerate(net).model(**{name: torch.ones(shape) for name, shape in shapes.items()})


def call(fast, before):
    before()
    return fast(torch.ones(1, 3, 8, 8), 0.7)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    function, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as caught:
        function(tiny())
    assert "\n" not in str(caught.value)


def test_a_copy_that_looks_like_the_network():
    net = tiny(label_dim=4)
    x, sigma, labels = inputs(net, 2, 0.7)
    fast = accelerate(net, "exact")
    assert type(fast) is type(net) and net.model is not fast.model and fast.label_dim == 4
    assert list(fast.state_dict()) == list(net.state_dict())
    assert [(n, id(p)) for n, p in fast.named_parameters()] == [(n, id(p)) for n, p in net.named_parameters()]
    want = fast(x, sigma, labels)
    for same in (fast.eval(), fast.to("cpu"), fast.float(), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(same(x, sigma, labels), want)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x, sigma, labels), want)
    again = accelerate(fast, "fp32")
    assert again.model.reference[0] is net.model and again.model.how[0] == "fp32"
    net.load_state_dict(net.state_dict())  # the network itself stays what it was


def test_results_are_fresh_tensors_also_out_of_inference_mode():
    net = tiny()
    fast = accelerate(net)
    x, sigma, _ = inputs(net, 1, 0.7)
    with torch.inference_mode():
        first = fast(x, sigma).clone()
    second = fast(x, sigma)
    kept = second.clone()
    fast(x + 1, sigma)
    assert torch.equal(second, kept) and torch.equal(first, kept)


def test_other_weights_are_refused():
    net = tiny()
    fast = accelerate(net)
    zeros = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    x, sigma, _ = inputs(net, 1, 0.7)
    with pytest.raises(AttributeError) as refused:
        torch.func.functional_call(fast, zeros, (x, sigma))
    assert "expected the network it was made of" in str(refused.value.__cause__)
    assert not hasattr(fast.model, "enc") and getattr(fast.model, "map_layer0", None) is None
    want = fast(x, sigma)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            assert torch.equal(fast(x, sigma), want)


def test_a_compiled_accelerated_network_runs_its_plans():
    net = tiny(label_dim=4)
    fast = accelerate(net)
    graphs = []

    def eager(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(fast, backend=eager)
        for batch in (1, 2, 3):
            x, sigma, labels = inputs(net, batch, 0.7)
            with torch.no_grad():
                assert torch.equal(compiled(x, sigma, labels), fast(x, sigma, labels))
    assert 0 < len(graphs) <= 6  # what is before and after the plan, for one image, for two, for any number


def test_calls_of_one_shape_compile_an_accelerated_network_once():
    net = tiny()
    fast, frames = accelerate(net), []
    found = inputs(net, 1, 0.7)
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        compiled = torch.compile(fast, backend="eager")
        for _ in range(10):
            compiled(*found)
            frames.append(torch._dynamo.utils.counters["frames"]["total"])
    assert len({*frames[1:]}) == 1


def test_explain_tells_of_plans():
    net = tiny()
    fast = accelerate(net)
    explain(reset=True)
    with torch.no_grad():
        fast(*inputs(net, 1, 0.7))
        fast(*inputs(net, 1, 0.7))
    ran = {choice.op: choice for choice in explain()}
    assert ran["conv2d"].backend == ran["attention"].backend == "accelerated fp32"
    assert ran["attention"].calls == 2 * sum(bool(getattr(m, "num_heads", 0)) for m in net.modules())
    assert "plan" in ran["conv2d"].reasons["cpu"] and ran["solver_update"].reasons
