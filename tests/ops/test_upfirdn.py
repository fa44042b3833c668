"""upfirdn: the reference against its definition, every backend against the reference, derivatives, torch.compile."""

import pytest
import torch

from edm_fast import backend, native, testing
from edm_fast.errors import UserError
from edm_fast.ops import upfirdn
from helpers import op_checks

reference = op_checks.forced("upfirdn", "reference")
DTYPES = (torch.float32, torch.float64)
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
K4 = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).double() / 64


def defined(x, f, up=1, down=1, padding=0):
    """The sums of the op's docstring, one output at a time."""
    k = f.shape[0]
    h, w = (upfirdn_size(n, k, up, down, padding) for n in x.shape[2:])
    y = x.new_zeros(*x.shape[:2], h, w)
    for i in range(h):
        for j in range(w):
            for r in range(x.shape[2]):
                for c in range(x.shape[3]):
                    if up > 1:
                        ky, kx = i + padding - up * r, j + padding - up * c
                    else:
                        ky, kx = r - down * i + padding, c - down * j + padding
                    if 0 <= ky < k and 0 <= kx < k:
                        y[:, :, i, j] += up**2 * x[:, :, r, c] * f[ky, kx]
    return y


def upfirdn_size(size, taps, up, down, padding):
    return (size - 1) * up + taps - 2 * padding if up > 1 else (size + 2 * padding - taps) // down + 1


@pytest.mark.parametrize("up, down", [(2, 1), (1, 2), (1, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2, 3]])
@pytest.mark.parametrize("padding", [0, 1])
def test_reference_is_the_definition(up, down, taps, padding):
    t = torch.tensor(taps, dtype=torch.float64)
    x, f = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.outer(t, t) / t.sum() ** 2
    torch.testing.assert_close(reference(x, f, up, down, padding), defined(x, f, up, down, padding))


def test_a_constant_image_stays_constant():
    x, f = torch.full((1, 2, 8, 8), 0.7), torch.full((2, 2), 0.25)
    torch.testing.assert_close(upfirdn(x, f, up=2), torch.full((1, 2, 16, 16), 0.7))
    torch.testing.assert_close(upfirdn(x, f, down=2), torch.full((1, 2, 4, 4), 0.7))


@needs_native
@pytest.mark.parametrize("case", op_checks.cases("upfirdn"))
def test_instruction_sets_and_threads_agree(case):
    (x, f), kwargs = case.inputs(torch.float32)
    with backend.use_backend("cpu"):
        results, threads = [], torch.get_num_threads()
        try:
            for isa in filter(native.available, native.ISAS):
                for count in (1, 2, 3, 8):
                    torch.set_num_threads(count)
                    with native.use_isa(isa):
                        results.append(upfirdn(x, f, **kwargs))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_native
def test_box_filter_is_bit_identical_to_the_reference():
    for case in testing.cases("upfirdn", real=True):
        (x, f), kwargs = case.inputs(torch.float32)
        if f.shape[0] == 2:
            with backend.use_backend("cpu"):
                assert torch.equal(upfirdn(x, f, **kwargs), reference(x, f, **kwargs)), case.name


@needs_native
@pytest.mark.parametrize("kwargs", [{"up": 2, "padding": 1}, {"down": 2, "padding": 1}, {"down": 3}, {"up": 3}])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(kwargs, layout):
    x = testing.laid_out(torch.randn(1, 2, 7, 6, dtype=torch.float64), layout).requires_grad_()
    with backend.use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda x: upfirdn(x, K4, **kwargs), x)
        assert torch.autograd.gradgradcheck(lambda x: upfirdn(x, K4, **kwargs), x)


@needs_native
def test_opcheck():
    for layout in ("contiguous", "channels_last"):
        for args in ((2, 1, 1), (1, 2, 1), (1, 1, 0)):
            x = testing.laid_out(torch.randn(2, 3, 7, 8, dtype=torch.float64), layout)
            torch.library.opcheck(torch.ops.edm_fast.upfirdn_cpu.default, (x, K4, *args))
            dy = torch.ops.edm_fast.upfirdn_cpu(x, K4, *args)
            torch.library.opcheck(torch.ops.edm_fast.upfirdn_cpu_adjoint.default, (dy, x, K4, *args))


@needs_native
def test_compiles_without_a_graph_break():
    def loss(x):
        return upfirdn(upfirdn(x * 2, K4, up=2, padding=1), K4, down=2, padding=1).square().sum()

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(loss(x), x)[0]
    with backend.use_backend("cpu"):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, loss(x))
    torch.testing.assert_close(torch.autograd.grad(compiled, x)[0], expected)


@needs_native
def test_the_result_has_the_dtype_of_autocast():
    x = torch.randn(1, 2, 4, 4)
    for how in ({"up": 2}, {"down": 2}):
        with torch.autocast("cpu", torch.bfloat16):
            found = upfirdn(x, torch.full((2, 2), 0.25), **how)
            assert found.dtype == reference(x, torch.full((2, 2), 0.25), **how).dtype == torch.bfloat16


def test_reasons():
    x, f = torch.randn(1, 2, 4, 4), torch.full((2, 2), 0.25)
    assert op_checks.choose("upfirdn", x, f, up=2).backend == "cpu"
    half = op_checks.choose("upfirdn", x.half(), f, up=2)
    assert half.backend == "reference" and "float16" in half.reasons["cpu"]
    assert upfirdn(x.bfloat16(), f, up=2).dtype == torch.bfloat16
    learned = op_checks.choose("upfirdn", x, f.clone().requires_grad_(), up=2)
    assert learned.backend == "reference" and "filter" in learned.reasons["cpu"]
    with backend.use_backend("cpu"), pytest.raises(backend.BackendError, match="float16"):
        upfirdn(x.half(), f, up=2)


@needs_native
def test_layout_is_kept():
    x, f = torch.randn(2, 3, 4, 6), torch.full((2, 2), 0.25)
    y = upfirdn(x.to(memory_format=torch.channels_last), f, up=2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert upfirdn(x, f, up=2).is_contiguous()


@pytest.mark.parametrize(
    "x, f, kwargs, message",
    [
        ((2, 3, 4), (2, 2), {}, "4 dimensions"),
        ((1, 1, 4, 4), (2, 3), {}, "square"),
        ((1, 1, 4, 4), (2, 2), {"up": 2, "down": 2}, "one factor"),
        ((1, 1, 4, 4), (2, 2), {"padding": -1}, "one factor"),
        ((1, 1, 1, 4), (2, 2), {"down": 2}, "too small"),
    ],
)
def test_bad_input(x, f, kwargs, message):
    with pytest.raises(UserError, match=message):
        upfirdn(torch.zeros(x), torch.zeros(f), **kwargs)
