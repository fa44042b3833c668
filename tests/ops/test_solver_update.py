"""solver_update: each special case of the formula, and bit-identity of every backend with the reference."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from edm_fast import backend, native, testing
from edm_fast.errors import UserError
from edm_fast.ops import solver_update
from edm_fast.ops.solver_update import _kernel
from helpers import op_checks

reference = op_checks.forced("solver_update", "reference")
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def draw(count, *shape):
    return [torch.randn(shape or (2, 3, 4, 5), dtype=torch.float64) for _ in range(count)]


def same_bits(function, call):
    """Equal to the reference to the bit; signs of zeros and places of nan included."""
    got, want = (
        testing.outputs(function(*call[0], **call[1])),
        testing.outputs(reference(*call[0], **call[1])),
    )
    assert len(got) == len(want)
    for g, w in zip(got, want):
        assert g.shape == w.shape and g.dtype == w.dtype
        assert torch.equal(g.isnan(), w.isnan()) and torch.equal(g.nan_to_num(7.0), w.nan_to_num(7.0))
        assert torch.equal(torch.signbit(g)[~g.isnan()], torch.signbit(w)[~w.isnan()])


def test_euler_and_heun():
    """Karras et al. 2022, Alg. 1, lines 4 to 8."""
    x, D, D2 = draw(3)
    t, t_next = 2.5, 1.5
    y, d = solver_update(x, x, D, t=t, h=t_next - t)
    assert torch.equal(d, (x - D) / t) and torch.equal(y, x + (t_next - t) * d)
    y2, d2 = solver_update(x, y, D2, t=t_next, h=t_next - t, terms=[d], weights=[0.5], w=0.5)
    assert torch.equal(d2, (y - D2) / t_next) and torch.equal(y2, x + (t_next - t) * (0.5 * d + 0.5 * d2))


def test_noise_and_preconditioning():
    x, noise, F = draw(3)
    y, d = solver_update(x, noise=noise, c=0.3)
    assert d is None and torch.equal(y, x + 0.3 * noise)
    assert torch.equal(solver_update(x, a=0.7, terms=[F], weights=[0.2])[0], 0.7 * x + 0.2 * F)


def test_coefficients_on_the_device_are_the_same_numbers():
    x, D, term, noise = draw(4)
    numbers = {"p": 1.7, "q": 0.31, "t": 0.7, "a": 0.9, "h": 0.13, "w": 0.37, "c": 0.21}
    on_device = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    calls = [(numbers, [0.61]), (on_device, [torch.tensor(0.61, dtype=torch.float64)])]
    found = [solver_update(x, x, D, terms=[term], weights=w, noise=noise, **n) for n, w in calls]
    assert all(torch.equal(a, b) for a, b in zip(*found))


@needs_native
def test_coefficients_of_each_image():
    cpu, x = op_checks.forced("solver_update", "cpu"), torch.randn(3, 4)
    for base, t in ((x, torch.rand(3, 1)), (x[:0], torch.rand(0, 1)), (x, torch.rand(1)), (x[0, 0], torch.tensor(0.5))):
        same_bits(cpu, ((base, base, 2 * base), {"t": t}))
    for base, t in ((x, torch.rand(1, 1, 1)), (x[0, 0], torch.rand(1))):  # these make the result larger
        with pytest.raises(backend.BackendError, match="of more numbers than one for each image"):
            cpu(base, base, base, t=t)


def test_the_most_terms():
    x = torch.ones(2)
    assert native.lib is None or native.lib.MAX_TERMS == _kernel.MAX_TERMS
    assert "it takes 8 terms, not 9" in str(op_checks.choose("solver_update", x, terms=[x] * 9, weights=[1.0] * 9))


def test_what_torch_records_is_the_formula():
    """Native code is no op of torch's: it would read fake tensors at address 0, and no graph would hold it."""
    x = torch.ones(2)
    graph = make_fx(lambda x: solver_update(x, a=2.0)[0])(x)
    assert torch.equal(graph(3 * x), 6 * x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        assert torch.equal(torch.jit.trace(lambda x: solver_update(x, a=2.0)[0], x)(3 * x), 6 * x)
    with FakeTensorMode() as mode:
        assert solver_update(torch.ones(2))[0].shape == (2,)
    assert solver_update(mode.from_tensor(x))[0].shape == (2,)
    with pytest.raises(backend.BackendError, match="subclass"):
        op_checks.forced("solver_update", "cpu")(mode.from_tensor(x))


@needs_native
@pytest.mark.parametrize("name", op_checks.backends("solver_update"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", op_checks.cases("solver_update"))
def test_backend_is_bit_identical(name, dtype, case):
    with testing.poisoned():
        same_bits(op_checks.forced("solver_update", name), case.inputs(dtype, op_checks.BACKENDS[name]))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", op_checks.cases("solver_update"))
def test_instruction_sets_and_threads_agree(case, dtype):
    call, threads = case.inputs(dtype), torch.get_num_threads()
    try:
        for isa in filter(native.available, native.ISAS):
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                with native.use_isa(isa):
                    same_bits(op_checks.forced("solver_update", "cpu"), call)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_special_values():
    special = torch.tensor(
        [0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1e308], dtype=torch.float64
    )
    x, D = (t.reshape(-1).contiguous() for t in torch.meshgrid(special, special, indexing="ij"))
    run = op_checks.forced("solver_update", "cpu")
    for kwargs in (
        {},
        {"t": 0.0},
        {"h": -0.0, "t": 3.0},
        {"w": 0.5, "terms": [D], "weights": [0.5]},
        {"a": float("inf")},
    ):
        same_bits(run, ((x, x, D), kwargs))
    same_bits(run, ((x,), {"terms": [D], "weights": [1.0], "noise": x, "c": 1.0}))


@needs_native
def test_reasons():
    x, D = draw(2)
    assert op_checks.choose("solver_update", x, x, D).backend == "cpu"
    for call, reason in (
        (dict(base=x.half()), "float16"),
        (dict(base=x, a=torch.tensor(0.5)), "coefficient"),
        (dict(base=x, terms=[D], weights=[torch.rand_like(x)]), "coefficient"),
        (dict(base=x, terms=[D] * 9, weights=[1.0] * 9), "9"),
        (dict(base=x.clone().requires_grad_()), "no backward"),
    ):
        choice = op_checks.choose("solver_update", **call)
        assert choice.backend == "reference" and reason in choice.reasons["cpu"], choice
        y, _ = solver_update(**call)
        torch.testing.assert_close(y, reference(**call)[0])
        with backend.use_backend("cpu"), pytest.raises(backend.BackendError, match=reason):
            solver_update(**call)


@needs_native
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1), (3, 1, 1, 1)])
def test_asked_for_by_name_it_takes_what_preconditioners_give(shape, layout):
    """A coefficient for each image, and network outputs in another layout; on its own it leaves both to torch."""
    x, D, F, noise = draw(4, 3, 4, 5, 6)
    args = x, x, D
    kwargs = {"terms": [F.to(memory_format=layout)], "weights": [torch.rand(shape, dtype=x.dtype)], "noise": noise}
    kwargs |= {"a": torch.rand(shape, dtype=x.dtype), "t": 0.7, "c": 0.3}
    assert op_checks.choose("solver_update", *args, **kwargs).backend == "reference"
    same_bits(op_checks.forced("solver_update", "cpu"), (args, kwargs))


def test_differentiable():
    x, D = (t.requires_grad_() for t in draw(2))
    assert torch.autograd.gradcheck(lambda x, D: solver_update(x, x, D, t=0.7, h=-0.3)[0], (x, D))


def test_compiles_without_a_graph_break():
    x, D = draw(2)
    step = torch.compile(lambda x, D: solver_update(x, x, D, t=0.7, h=-0.3)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(step(x, D), solver_update(x, x, D, t=0.7, h=-0.3)[0])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"x": torch.zeros(2)}, "go together"),
        ({"terms": [torch.zeros(2)]}, "1 terms but 0 weights"),
        ({"noise": torch.zeros(3)}, "expected"),
        ({"noise": torch.zeros(2, dtype=torch.float64)}, "float64"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(UserError, match=message):
        solver_update(torch.zeros(2), **kwargs)
    with pytest.raises(UserError, match="floating-point"):
        solver_update(torch.zeros(2, dtype=torch.int64))
