"""upfirdn in Triton: forward, adjoint and second derivative in every dtype and memory layout, tiles of every shape."""

import pytest
import torch

from edm_fast import backend, testing
from helpers import op_checks

reference = op_checks.forced("upfirdn", "reference")
pytest.importorskip("triton")
DEVICE = op_checks.BACKENDS["triton"]
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CASES = op_checks.cases("upfirdn", real=False)
if DEVICE == "cpu":  # the interpreter's share: one size of each kind, all paddings, filters, factors and layouts
    CASES = [case for case in CASES if not any(name in case.id for name in ("2x33", "12x6", "tall"))]
FEW = [case for case in CASES if any(name in case.id for name in ("7x9_p1", "general", "batch"))]
K4 = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).double().to(DEVICE) / 64
RUN = op_checks.forced("upfirdn", "triton")


@pytest.mark.parametrize("case", CASES)
def test_forward_keeps_the_budget(case):
    op_checks.forward("upfirdn", "triton", case, torch.float32)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32], ids=str)
@pytest.mark.parametrize("case", FEW)
def test_forward_in_other_dtypes(dtype, case):
    op_checks.forward("upfirdn", "triton", case, dtype)


@pytest.mark.parametrize("dtype", DTYPES if DEVICE == "cuda" else DTYPES[1:3], ids=str)
@pytest.mark.parametrize("case", FEW)
def test_gradient_keeps_the_budget(dtype, case):
    op_checks.gradient("upfirdn", "triton", case, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="too large for the interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", op_checks.cases("upfirdn", real=True))
def test_real_sizes(dtype, case):
    op_checks.forward("upfirdn", "triton", case, dtype)
    op_checks.gradient("upfirdn", "triton", case, dtype)


@pytest.mark.parametrize("shape", [(1, 130, 3, 5), (1, 256, 2, 2), (1, 1, 20, 70), (2, 3, 9, 17)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tiles_cover_the_output(shape, layout):
    """More than one block along rows and columns, channels that divide into blocks and such that do not."""
    x = testing.laid_out(torch.randn(shape, dtype=torch.float64).to(DEVICE), layout)
    with testing.poisoned():
        for kwargs in ({"up": 2, "padding": 1}, {"down": 2, "padding": 2}):
            y, wanted = RUN(x, K4, **kwargs), reference(x, K4, **kwargs)
            torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)
            assert y.is_contiguous(memory_format=torch.channels_last) or layout == "contiguous"


@pytest.mark.parametrize("kwargs", [{"up": 2, "padding": 1}, {"down": 2, "padding": 1}, {"down": 3}])
def test_derivatives(kwargs):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: RUN(x, K4, **kwargs), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: RUN(x, K4, **kwargs), x, fast_mode=True)


def test_an_image_does_not_depend_on_the_batch():
    x = torch.randn(4, 8, 5, 7, device=DEVICE).to(memory_format=torch.channels_last)
    y = RUN(x, K4.float(), down=2, padding=1)
    assert all(torch.equal(RUN(x[k : k + 1], K4.float(), down=2, padding=1), y[k : k + 1]) for k in range(4))


def test_opcheck():
    x = torch.randn(2, 3, 7, 8, device=DEVICE).to(memory_format=torch.channels_last)
    for args in ((2, 1, 1), (1, 2, 1)):
        torch.library.opcheck(torch.ops.edm_fast.upfirdn_triton.default, (x, K4.float(), *args))
        dy = torch.ops.edm_fast.upfirdn_triton(x, K4.float(), *args)
        torch.library.opcheck(torch.ops.edm_fast.upfirdn_triton_adjoint.default, (dy, x, K4.float(), *args))


def test_reasons():
    x, f = torch.randn(1, 2, 4, 4, device=DEVICE), torch.full((2, 2), 0.25, device=DEVICE)
    half = op_checks.choose("upfirdn", x.half(), f, up=2)
    assert half.backend == ("reference" if DEVICE == "cpu" else "triton")
    assert DEVICE == "cuda" or "interpreter" in half.reasons["triton"]
    with backend.use_backend("triton"):
        assert op_checks.choose("upfirdn", x.bfloat16(), f, up=2).backend == "triton"
        with pytest.raises(backend.BackendError, match="filter"):
            op_checks.choose("upfirdn", x, f.clone().requires_grad_(), up=2)
        with pytest.raises(backend.BackendError, match="float8"):
            op_checks.choose("upfirdn", x.to(torch.float8_e5m2), f, up=2)
