"""conv2d: the reference against its definition, derivatives, and every backend against the reference."""

import pytest
import torch
import torch.nn.functional as F

from edm_fast import backend, native, testing
from edm_fast.backend import BackendError
from edm_fast.errors import UserError
from edm_fast.ops import conv2d
from helpers import op_checks
from helpers.conv_inputs import all_gradients, case_inputs

reference = op_checks.forced("conv2d", "reference")
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def defined(x, weight, bias=None, emb=None, residual=None, scale=1.0, padding=None):
    """The op's formula as a matrix product over unfolded patches."""
    k = weight.shape[-1]
    pad = k // 2 if padding is None else padding
    h, w = (n + 2 * pad - k + 1 for n in x.shape[2:])
    patches = F.pad(x, [pad] * 4).unfold(2, k, 1).unfold(3, k, 1)  # (N, C, h, w, k, k)
    y = torch.einsum("nchwij,ocij->nohw", patches, weight)
    if bias is not None:
        y = y + bias.reshape(1, -1, 1, 1)
    if emb is not None:
        y = y + emb.reshape(*emb.shape, 1, 1)
    if residual is not None:
        y = y + residual
    assert y.shape[2:] == (h, w)
    return y * scale


@pytest.mark.parametrize("case", op_checks.cases("conv2d", real=False))
def test_reference_is_the_definition(case):
    args, kwargs = case.inputs(torch.float64)
    torch.testing.assert_close(reference(*args, **kwargs), defined(*args, **kwargs))


def test_inputs_are_left_alone():
    x, weight, residual = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3), torch.randn(1, 2, 4, 4)
    before = x.clone(), weight.clone(), residual.clone()
    conv2d(x, weight, torch.ones(2), torch.ones(1, 2), residual, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, weight, residual)))


def test_weights_follow_the_dtype_of_the_image():
    y = conv2d(torch.randn(1, 2, 4, 4).bfloat16(), torch.randn(3, 2, 3, 3), torch.randn(3))
    assert y.dtype == torch.bfloat16


def test_one_embedding_serves_every_image():
    x, weight, emb = torch.randn(3, 2, 4, 4), torch.randn(2, 2, 1, 1), torch.randn(1, 2)
    torch.testing.assert_close(conv2d(x, weight, emb=emb), conv2d(x, weight, emb=emb.expand(3, 2)))


def test_derivatives():
    x, weight, bias, emb, residual = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 2, 4, 3), (3, 2, 3, 3), (3,), (2, 3), (2, 3, 4, 3))
    )
    assert torch.autograd.gradcheck(lambda *args: conv2d(*args, 0.7), (x, weight, bias, emb, residual))


def on_cpu(*args, **kwargs):
    return op_checks.forced("conv2d", "cpu")(*args, **kwargs)


GRADIENTS = {
    "scaled": case_inputs(scale=0.7),
    "one_embedding": case_inputs(emb=1),
    "channels_last": case_inputs(layout="channels_last", scale=0.7),
    "strided": case_inputs(layout="strided"),
    "padding_0": case_inputs(padding=0),
    "padding_2": case_inputs(padding=2, scale=0.7),
    "k1": case_inputs(k=1, scale=0.7),
    "one_channel": case_inputs((2, 1, 5, 6), 1),
    "one_pixel": case_inputs((3, 8, 1, 1), 5, emb=3),
    "wider": case_inputs((2, 96, 12, 12), 64),
}


@needs_native
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_every_argument_keep_the_budget(name):
    testing.check(
        all_gradients(on_cpu),
        all_gradients(reference),
        GRADIENTS[name],
        backend.ops()["conv2d"].implementations["cpu"].budget,
    )


@needs_native
@pytest.mark.parametrize("name", ["scaled", "one_embedding", "padding_0", "padding_2", "k1"])
def test_second_derivatives(name):
    """Of a function of the gradients, against the reference in float64: the kernel has no float64 to check it in."""

    def second(function):
        def run(*args, **kwargs):
            fresh = [t.detach().requires_grad_() for t in args]
            with torch.enable_grad():
                first = torch.autograd.grad(function(*fresh, **kwargs).square().sum(), fresh, create_graph=True)
                return torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), fresh)

        return run

    args, kwargs = GRADIENTS[name]
    exact = second(reference)(*testing.widened(args), **kwargs)
    for got, want in zip(second(on_cpu)(*args, **kwargs), exact, strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@needs_native
def test_gradients_for_some_and_of_an_expanded_dy():
    args, kwargs = GRADIENTS["scaled"]
    for index in range(5):
        leaf = args[index].clone().requires_grad_()
        fresh = [*args[:index], leaf, *args[index + 1 :]]
        (got,) = torch.autograd.grad(on_cpu(*fresh, **kwargs).sum(), leaf)  # dy is expanded, not dense
        (want,) = torch.autograd.grad(reference(*fresh, **kwargs).sum(), leaf)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@needs_native
def test_threads_agree_on_gradients():
    results, threads = [], torch.get_num_threads()
    args, kwargs = GRADIENTS["wider"]
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(all_gradients(on_cpu)(*args, **kwargs))
    finally:
        torch.set_num_threads(threads)
    # the gradients of weight (1 is x) and of what is summed over pixels are torch's own
    assert all(torch.equal(a[i], b[i]) for a, b in zip(results, results[1:]) for i in (0, 1, 5))


@needs_native
def test_opcheck():
    for layout in testing.LAYOUTS:
        for name in (None, 1, 2):
            (x, weight, bias, _, residual), _ = case_inputs(layout=layout)
            emb = None if name is None else bias.expand(name, -1).contiguous()
            for padding in (0, 1, 2):
                tail = residual if padding == 1 else None
                full = (x, weight, bias, emb, tail, 0.5, padding, None)
                torch.library.opcheck(torch.ops.edm_fast.conv2d_cpu.default, full)
                plain = (x, weight, None, None, None, 1.0, padding, None)
                dy = torch.ops.edm_fast.conv2d_cpu(*plain)
                torch.library.opcheck(torch.ops.edm_fast.conv2d_cpu_adjoint.default, (dy, *plain))


@needs_native
@pytest.mark.parametrize("name", ["scaled", "k1", "channels_last"])
def test_compiles_without_a_graph_break(name):
    args, kwargs = GRADIENTS[name]
    leaves = [t.clone().requires_grad_() for t in args]

    def loss(x, *rest):
        return conv2d(x * 2, *rest, **kwargs).square().sum()

    with backend.use_backend("cpu"):
        expected = torch.autograd.grad(loss(*leaves), leaves)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
        torch.testing.assert_close(compiled, loss(*leaves))
        torch.testing.assert_close(torch.autograd.grad(compiled, leaves), expected)


@needs_native
def test_autocast_is_left_to_torch():
    (x, weight, *_), _ = case_inputs((2, 32, 32, 32), 32)
    with torch.autocast("cpu", torch.bfloat16):
        choice = op_checks.choose("conv2d", x, weight)
        assert choice.backend == "reference" and "autocast" in choice.reasons["cpu"]
        assert conv2d(x, weight).dtype == torch.bfloat16
        with backend.use_backend("cpu"), pytest.raises(BackendError, match="autocast"):
            conv2d(x, weight)
    assert op_checks.choose("conv2d", x, weight).backend == "cpu"


@needs_native
def test_a_backend_asked_for_by_name_need_not_be_faster():
    small = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3)
    choice = op_checks.choose("conv2d", *small)
    assert choice.backend == "reference" and "16 channels" in choice.reasons["cpu"]
    with backend.use_backend("cpu"):
        assert op_checks.choose("conv2d", *small).backend == "cpu"
    wide = torch.randn(32, 16, 3, 3)
    assert "few pixels" in op_checks.choose("conv2d", torch.randn(1, 16, 8, 8), wide).reasons["cpu"]
    assert "1x1" in op_checks.choose("conv2d", torch.randn(8, 16, 32, 32), torch.randn(32, 16, 1, 1)).reasons["cpu"]


@needs_native
def test_reasons():
    x, weight = torch.randn(8, 16, 32, 32), torch.randn(32, 16, 3, 3)
    assert op_checks.choose("conv2d", x, weight).backend == "cpu"
    assert "float64" in op_checks.choose("conv2d", x.double(), weight.double()).reasons["cpu"]
    assert "not torch.bfloat16" in op_checks.choose("conv2d", x, weight.bfloat16()).reasons["cpu"]
    assert "5x5" in op_checks.choose("conv2d", x, torch.randn(32, 16, 5, 5)).reasons["cpu"]
    assert "padding" in op_checks.choose("conv2d", x, weight, padding=3).reasons["cpu"]


@needs_native
def test_no_images():
    args, kwargs = case_inputs((0, 17, 9, 7), emb=1, scale=0.7)
    y, *grads = all_gradients(on_cpu)(*args, **kwargs)
    assert y.shape == (0, 20, 9, 7)
    for grad, arg in zip(grads, args, strict=True):
        assert grad.shape == arg.shape and not grad.any()


@needs_native
def test_fresh_memory_is_channels_last():
    (x, weight, *_), _ = case_inputs((2, 32, 16, 16), 32)
    assert on_cpu(x, weight).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "x, weight, kwargs, message",
    [
        ((1, 2, 4), (2, 2, 3, 3), {}, "4 dimensions"),
        ((1, 2, 4, 4), (2, 3, 3, 3), {}, "2 channels"),
        ((1, 2, 4, 4), (2, 2, 3, 1), {}, "square"),
        ((1, 2, 2, 2), (2, 2, 3, 3), {"padding": 0}, "too small"),
        ((1, 2, 4, 4), (2, 2, 3, 3), {"bias": torch.zeros(3)}, "bias"),
        ((1, 2, 4, 4), (2, 2, 3, 3), {"residual": torch.zeros(1, 2, 3, 4)}, "residual"),
        ((2, 2, 4, 4), (2, 2, 3, 3), {"emb": torch.zeros(3, 2)}, "emb"),
    ],
)
def test_bad_input(x, weight, kwargs, message):
    with pytest.raises(UserError, match=message):
        conv2d(torch.zeros(x), torch.zeros(weight), **kwargs)


def weight_gradient(n, c, o, h, w, padding):
    """The native gradient of a weight, and the one in float64."""
    generator = torch.Generator().manual_seed(c)
    x = torch.randn(n, c, h, w, generator=generator)
    dy = torch.randn(n, o, h + 2 * padding - 2, w + 2 * padding - 2, generator=generator)
    weight = torch.empty(o, c, 3, 3)
    found = torch.ops.edm_fast.conv2d_cpu_weight_gradient(dy, x, weight, None, None, None, 1.0, padding, None)
    return found, torch.nn.grad.conv2d_weight(x.double(), (o, c, 3, 3), dy.double(), padding=padding)


WEIGHTS = [(2, 16, 32, 8, 8, 1), (1, 5, 7, 7, 9, 1), (3, 33, 40, 5, 6, 0), (1, 64, 3, 11, 5, 2), (2, 1, 1, 1, 1, 1)]


@needs_native
@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("sizes", WEIGHTS)
def test_weight_gradient(sizes, isa):
    if native.ISAS.index(isa) > native.lib.BEST_ISA:
        pytest.skip(f"this processor has no {isa}")
    with native.use_isa(isa), testing.poisoned():
        found, exact = weight_gradient(*sizes)
    assert ((found - exact).norm() / exact.norm()).item() < 2e-6


@needs_native
@pytest.mark.parametrize(
    ("sizes", "several"),
    [((40, 96, 64, 32, 32, 1), True), ((2, 200, 40, 16, 13, 1), False)],
    ids=["more tiles than a chunk", "more threads than panels"],
)
def test_weight_gradient_on_any_number_of_threads(sizes, several):
    n, inputs, outputs, h, w, padding = sizes
    workspace = native.lib.conv2d_bwd_workspace(n=n, h=h, w=w, inputs=inputs, outputs=outputs, padding=padding)
    tiles = n * -(-h // 4) * -(-w // 4)
    assert (workspace < 36 * tiles * inputs) == several  # images in chunks
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with testing.poisoned():
                found, exact = weight_gradient(*sizes)
            results.append(found)
    finally:
        torch.set_num_threads(before)
    assert ((results[0] - exact).norm() / exact.norm()).item() < 3e-6
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_native
def test_opcheck_of_the_weight_gradient():
    for kernel, padding in ((3, 1), (3, 0), (1, 0)):
        grow = 2 * padding - kernel + 1
        dy, x = torch.randn(2, 5, 6 + grow, 7 + grow), torch.randn(2, 3, 6, 7)
        weight = torch.randn(5, 3, kernel, kernel)
        args = (dy, x, weight, None, None, None, 1.0, padding, None)
        torch.library.opcheck(torch.ops.edm_fast.conv2d_cpu_weight_gradient.default, args)


def test_clipped_results():
    """By the reference; by native code in plans alone (tests/plan/test_edm2.py)."""
    x, weight = torch.randn(2, 16, 32, 32), torch.randn(16, 16, 3, 3)
    choice = op_checks.choose("conv2d", x, weight, clip=0.5)
    assert choice.backend == "reference" and "does not clip" in choice.reasons["cpu"]
    assert torch.equal(conv2d(x, weight, scale=0.7, clip=0.5), reference(x, weight, scale=0.7).clip(-0.5, 0.5))
