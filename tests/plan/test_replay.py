"""Sampling steps as CUDA graphs: the same bits as the plain loop, whatever the method, the labels and the noise.

Without a GPU a stand-in records the calls of a graph on CPU tensors (helpers/taped_graph.py).
"""

import copy
import pickle
import threading
import types

import pytest
import torch

from edm_fast import StackedRandomGenerator, ablation_sampler, accelerate, edm_sampler, use_backend
from edm_fast.backend import BackendError
from edm_fast.errors import UserError
from edm_fast.evaluation import _rows
from edm_fast.plan import _capture, _gpu, _gpu_program
from edm_fast.sampling import loop, sample
from edm_fast.sampling.solvers import registry
from helpers import taped_graph
from helpers.multistep import dpm_solver_2m, trapezoid_pece
from helpers.planned_networks import DEVICE, moved, network, planned

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _graphs(monkeypatch):
    taped_graph.put_in_place(monkeypatch)


def multistep(method):
    def sampler(net, latents, labels=None, randn_like=torch.randn_like, num_steps=6):
        sigmas = torch.logspace(1, -1.5, num_steps, dtype=torch.float64).tolist()
        return loop.run(net, latents, method(sigmas), labels, randn_like)

    return sampler


CHURN = {"S_churn": 8, "S_min": 0.05, "S_max": 20, "S_noise": 1.007}  # some steps get noise
METHODS = {
    "heun": (edm_sampler, {}),
    "churn": (edm_sampler, CHURN),
    "euler": (ablation_sampler, {"solver": "euler", "discretization": "vp", "schedule": "vp", "scaling": "vp"}),
    "ve": (ablation_sampler, {"discretization": "ve", "schedule": "ve", "S_churn": 3}),
    "alpha": (ablation_sampler, {"alpha": 0.6, "schedule": "vp", "scaling": "vp", **CHURN}),
    "midpoint": (ablation_sampler, {"alpha": 0.5}),
    "iddpm": (ablation_sampler, {"discretization": "iddpm"}),
    "dpm": (multistep(dpm_solver_2m), {}),
    "pece": (multistep(trapezoid_pece), {}),
    "unipc": (sample, {"solver": "unipc"}),
    "thresholded": (sample, {"solver": "dpmpp", "order": 3, "dynamic_thresholding": True}),
    "watched": (
        sample,
        {"solver": "ipndm", "afs": True, "callback": lambda i, sigma, x, denoised: 0.9 * x + 0.1 * denoised},
    ),
}


def draw(net, sampler=edm_sampler, seeds=(1, 2), classes=(0, 3), **kwargs):
    """Images of these seeds; latents do not depend on them, so that only their noise makes a difference."""
    latents = torch.randn([len(seeds), 3, 8, 8], generator=torch.Generator().manual_seed(5)).to(DEVICE)
    labels = torch.eye(4)[[*classes]].to(DEVICE) if net.label_dim and classes else None
    noise = StackedRandomGenerator(DEVICE, seeds)
    with torch.no_grad():
        return sampler(net, latents, labels, noise.randn_like, **{"num_steps": 6, **kwargs})


def replays(net):
    """The recorded steps of all programs."""
    return [
        r for programs in net.model.pool.programs.values() for program in programs for r in program.step_graphs.values()
    ]


def pair(name="ddpmpp", precision="fp32", **changes):
    """A network with plain calls on a GPU, and with graphs."""
    net = network(name, **{"channel_mult": [1], "attn_resolutions": [], **changes})
    return planned(net, precision, cuda_graph=False), planned(net, precision)


OTHERS = [(name, method) for name in ("ddpmpp-vp", "adm-iddpm") for method in ("churn", "alpha", "pece")]


@pytest.mark.parametrize(("name", "method"), [*(("ddpmpp", method) for method in METHODS), *OTHERS])
def test_the_bits_of_the_plain_loop(name, method):
    plain, fast = pair(name)
    sampler, kwargs = METHODS[method]
    for call, times in (
        ({}, 2),
        ({"seeds": (3, 4), "classes": (1, 1)}, 1),
        ({"classes": None}, 2),
        ({"num_steps": 9}, 1),
        ({"seeds": (1,), "classes": (2,)}, 1),
    ):
        wanted = draw(plain, sampler, **kwargs, **call)
        for _ in range(times):
            assert torch.equal(wanted, draw(fast, sampler, **kwargs, **call)), call
    assert replays(fast) and not replays(plain)


OPTIONS = {"listed": {"weights": [[-1.0]] * 4}, "restart": {"restart": [[2, 1, 0.1, 1.0]]}}


def test_every_solver(monkeypatch):
    """The bits of the plain loop, and once recorded no evaluation beside the graphs."""
    monkeypatch.setattr(_capture, "MAX_STEP_GRAPHS", 1000)
    evaluated = []
    run = _gpu_program.GpuProgram.run
    plain, fast = pair()
    monkeypatch.setattr(_gpu_program.GpuProgram, "run", lambda *args: evaluated.append(1) or run(*args))
    for solver in registry():
        kwargs = {"solver": solver, "num_steps": 4, **OPTIONS.get(solver, {})}
        wanted = draw(plain, sample, **kwargs)
        for _ in range(3):
            evaluated.clear()
            assert torch.equal(wanted, draw(fast, sample, **kwargs)), solver
        assert not evaluated, solver
    assert replays(fast)


@pytest.mark.parametrize("precision", ["exact", "tf32", "bf16", "fp16"])
def test_every_precision(precision):
    plain, fast = pair("ncsnpp", precision)
    for seeds in ((1, 2), (3, 4)):
        assert torch.equal(draw(plain, seeds=seeds, **CHURN), draw(fast, seeds=seeds, **CHURN))


def test_few_graphs_serve_any_number_of_steps(monkeypatch):
    _, fast = pair()
    draw(fast, **CHURN)
    draw(fast, **CHURN)
    evaluated = []
    run = _gpu_program.GpuProgram.run
    monkeypatch.setattr(_gpu_program.GpuProgram, "run", lambda *args: evaluated.append(1) or run(*args))
    draw(fast, **CHURN)
    draw(fast, num_steps=40, sigma_max=50, rho=5, **CHURN)
    assert len(replays(fast)) == 3 and not evaluated  # Heun with and without noise, Euler into 0; no evaluation beside
    assert (
        sum(map(len, fast.model.pool.programs.values())) == 1
    )  # and within them, those of the program that recorded them


def test_noise_enters_at_each_replay():
    plain, fast = pair()
    images = [draw(fast, seeds=(s, s + 1), **CHURN) for s in (1, 3, 5, 3)]
    assert torch.equal(images[1], images[3]) and not torch.equal(images[1], images[2])
    assert torch.equal(images[2], draw(plain, seeds=(5, 6), **CHURN))
    assert not torch.equal(images[2][0], images[2][1])


def test_noise_is_drawn_once_per_step_and_as_before():
    _, fast = pair()
    shapes = []

    def drawn(x):
        shapes.append((tuple(x.shape), x.dtype, x.is_contiguous()))
        return torch.zeros_like(x)

    latents = torch.zeros(2, 3, 8, 8, device=DEVICE).to(memory_format=torch.channels_last)
    for _ in range(3):
        shapes.clear()
        edm_sampler(fast, latents, randn_like=drawn, num_steps=5)
        assert shapes == [((2, 3, 8, 8), torch.float64, True)] * 5


def test_nothing_leaks_into_the_next_run():
    _, fast = pair()
    first = draw(fast, **CHURN)
    second = draw(fast, **CHURN)
    kept = second.clone()
    draw(fast, seeds=(7, 8), classes=(2, 2), num_steps=9, **CHURN)
    assert torch.equal(first, second) and torch.equal(second, kept)
    held = [t for r in replays(fast) for t in (*r.tensors, *r.graph.result) if t is not None]
    assert second.data_ptr() not in {t.data_ptr() for t in held}


def test_memory_layouts():
    plain, fast = pair()
    for layout in (torch.contiguous_format, torch.channels_last) * 2:
        latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE, memory_format=layout)
        a, b = (edm_sampler(net, latents, num_steps=5) for net in (plain, fast))
        assert torch.equal(a, b) and a.stride() == b.stride()


def test_kinds_beyond_the_bound_are_not_recorded(monkeypatch):
    monkeypatch.setattr(_capture, "MAX_STEP_GRAPHS", 2)
    plain, fast = pair()
    made = []
    monkeypatch.setattr(_gpu_program, "StepGraph", lambda *args: made.append(1) or _capture.StepGraph(*args))
    first = loop.slope(4.0, t=4.0, h=-2.0)
    steps = [loop.step(first), loop.step(loop.move(c=1.0, rebase=True), loop.slope(2.0, t=2.0, h=-1.0))]
    steps += [loop.step(loop.slope(0.9, t=0.9, h=-0.4), loop.slope(0.5, t=0.5, h=-0.4, weights=(0.5, 0.5)))]
    steps += [loop.step(loop.slope(0.4, s=0.7, t=0.4, h=-0.1))]

    def sampler(net, latents, labels, randn_like, num_steps):
        solver = loop.Solver([4, 2, 0.9, 0.4, 0.3][: num_steps + 1], steps[:num_steps])
        return loop.run(net, latents, solver, labels, randn_like)

    for _ in range(3):  # each kind comes again after three others
        assert torch.equal(draw(plain, sampler, num_steps=4), draw(fast, sampler, num_steps=4))
    assert not made and len(fast.model.evaluated_shapes.kinds) == 2
    for _ in range(3):  # two kinds of steps by turns
        assert torch.equal(draw(plain, sampler, num_steps=2), draw(fast, sampler, num_steps=2))
    assert len(made) == 2
    finished = []
    monkeypatch.setattr(_gpu_program.GpuProgram, "finish", lambda program: finished.append(1))
    for sampler, kwargs in (METHODS["euler"], METHODS["euler"], METHODS["dpm"], METHODS["dpm"]):
        assert torch.equal(draw(plain, sampler, **kwargs), draw(fast, sampler, **kwargs))
    assert len(replays(fast)) == 2 and len(finished) == len(made) - 2 > 0  # the latest; over before they go


def test_threads():
    plain, fast = pair()
    calls = [{"seeds": (s, s + 1)[: 1 + s % 2], "classes": (s % 4, 2)[: 1 + s % 2], **CHURN} for s in range(4)]
    want = [draw(plain, **call) for call in calls]
    found = {}

    def work(i):
        stream = torch.cuda.Stream() if DEVICE.type == "cuda" else None
        with torch.cuda.stream(stream):
            found[i] = [draw(fast, **calls[(i + k) % 4]) for k in range(3)]
        if stream is not None:
            stream.synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3] and replays(fast)
    for i, images in found.items():
        assert all(torch.equal(image, want[(i + k) % 4]) for k, image in enumerate(images))


def test_evaluations_beside_a_step_are_none_of_it():
    """A program that records or replays a step is nobody else's."""
    _, fast = pair()
    want = draw(fast)
    x, sigma, labels = moved(torch.ones(2, 3, 8, 8), torch.tensor(0.7), torch.eye(4)[:2])
    with torch.no_grad():
        other = fast(x, sigma, labels)
        noise = StackedRandomGenerator(DEVICE, (1, 2))
        found = []

        def randn_like(like):
            found.append(fast(x, sigma, labels))
            return noise.randn_like(like)

        for _ in range(3):
            latents = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(5)).to(DEVICE)
            image = edm_sampler(fast, latents, torch.eye(4)[[0, 3]].to(DEVICE), randn_like, num_steps=6)
            assert torch.equal(image, want) and all(torch.equal(f, other) for f in found)


def test_no_graphs_where_they_would_pass_something_by():
    plain, fast = pair()
    draw(fast), draw(fast)
    assert fast.model.replayer(fast) is not None and plain.model.replayer(plain) is None
    if DEVICE.type == "cpu":
        assert accelerate(network("ddpmpp")).model.replayer(fast) is None
    calls = []
    for module in (fast, fast.model):
        hook = module.register_forward_hook(lambda *args: calls.append(1))
        assert fast.model.replayer(fast) is None
        draw(fast)
        hook.remove()
    assert len(calls) == 2 * 11 and fast.model.replayer(fast) is not None
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert fast.model.replayer(fast) is None
    hook.remove()
    for net in (plain, fast):
        net.forward = lambda *args, own=net.forward, **kwargs: 2 * own(*args, **kwargs)
    assert fast.model.replayer(fast) is None and torch.equal(draw(plain), draw(fast))
    del plain.forward, fast.forward
    fast.model.forward = fast.model.forward
    assert fast.model.replayer(fast) is None
    del fast.model.forward

    class Guided(type(fast)):
        def forward(self, x, *args, **kwargs):
            return 2 * super().forward(x, *args, **kwargs)

    for net in (plain, fast):
        net.__class__ = Guided
    assert fast.model.replayer(fast) is None and torch.equal(draw(plain), draw(fast))


def test_what_the_formulas_depend_on_is_not_taken_from_an_old_graph():
    plain, fast = pair()
    for sigma_data in (0.5, 0.5, 0.7, 0.7, 0.5):
        plain.sigma_data = fast.sigma_data = sigma_data
        assert torch.equal(draw(plain), draw(fast))


def test_refusals_stay_once_a_step_is_recorded():
    _, fast = pair()
    draw(fast, **CHURN), draw(fast, **CHURN)
    latents, labels = torch.zeros(2, 3, 8, 8, device=DEVICE), torch.eye(4)[:2].to(DEVICE)
    with use_backend("cpu" if DEVICE.type == "cuda" else "cuda"), pytest.raises(BackendError, match="requested"):
        draw(fast, **CHURN)
    with pytest.raises(UserError, match="randn_like returned.*expected"):
        edm_sampler(fast, latents, labels, lambda x: torch.zeros_like(x)[:1], num_steps=6, **CHURN)
    fast.model.reference[0].train()
    with pytest.raises(UserError, match="training mode"):
        draw(fast, **CHURN)


def test_inference_mode_and_out_of_it():
    plain, fast = pair()
    want = draw(plain)
    for mode in (True, False) * 2:
        with torch.inference_mode(mode):
            assert torch.equal(draw(fast), want)


def test_a_program_that_is_made_for_a_step_inside_of_autocast():
    _, fast = pair()
    call = moved(torch.ones(2, 3, 8, 8), torch.tensor(0.7), torch.eye(4)[:2])
    with torch.no_grad():
        draw(fast, num_steps=2)
        want = fast(*call)
        fast.model.pool.programs.clear()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            draw(fast, num_steps=2)
        assert replays(fast) and torch.equal(fast(*call), want)


def _refused(D):
    raise UserError("refused")


def test_an_error_in_a_step_leaves_no_trace():
    plain, fast = pair()
    want = draw(plain)
    draw(fast)
    solver = loop.Solver([2.0, 2.0, 2.0], [loop.step(loop.slope(2.0))] * 2, limit=_refused)
    for _ in range(2):
        with pytest.raises(UserError, match="refused"):
            draw(fast, sampler=lambda net, x, *rest, **kwargs: loop.run(net, x, solver))
    assert torch.equal(draw(fast), want)
    assert [len(programs) for programs in fast.model.pool.programs.values()] == [1, 1]  # all given back


def test_copies_make_graphs_of_their_own():
    _, fast = pair()
    want = draw(fast)
    draw(fast)
    model = pickle.loads(pickle.dumps(fast.model))
    model.planner = _gpu.GpuPlanner("fp32", DEVICE, True, fast.model.how[-1])
    for copied in (copy.deepcopy(fast.model), model):
        copied.planner = model.planner
        again = copy.copy(fast)
        again.__dict__["_modules"] = {**fast._modules, "model": copied}
        assert not again.model.pool.programs and not again.model.evaluated_shapes.kinds
        assert torch.equal(draw(again), want) and torch.equal(draw(again), want) and replays(again)


def test_the_row_of_the_benchmark_that_has_graphs_of_evaluations_alone(monkeypatch):
    monkeypatch.setattr(_rows, "accelerated", planned)
    fast = _rows.ROWS["accelerate-fp16-evaluations"].build(types.SimpleNamespace(net=network("ddpmpp")))
    assert torch.equal(draw(fast), draw(fast)) and not replays(fast)
    (program,) = next(iter(fast.model.pool.programs.values()))
    assert program.graph is not None


def test_an_empty_batch():
    _, fast = pair()
    for _ in range(2):
        out = edm_sampler(fast, torch.empty(0, 3, 8, 8, device=DEVICE), num_steps=3)
        assert out.shape == (0, 3, 8, 8)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["exact", "fp32", "tf32", "bf16", "fp16"])
def test_measured_plans_on_a_gpu(precision):
    net = network("ddpmpp").to(DEVICE)
    plain, fast = accelerate(net, precision, cuda_graph=False), accelerate(net, precision)
    for seeds in ((1, 2), (3, 4), (1, 2)):
        assert torch.equal(draw(plain, seeds=seeds, **CHURN), draw(fast, seeds=seeds, **CHURN))
    assert replays(fast)


@pytest.mark.gpu
@gpu
def test_graphs_share_the_memory_of_one():
    _, fast = pair()
    for kwargs in ({}, {}, CHURN, CHURN):
        draw(fast, **kwargs)
    (program,) = (p for programs in fast.model.pool.programs.values() for p in programs)
    assert len(program.step_graphs) == 3
    assert {r.graph.graph.pool() for r in replays(fast)} == {program.graph.graph.pool()}
