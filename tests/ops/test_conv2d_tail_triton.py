"""conv2d by a library with its tail in one pass (backend "cuda"), and the pass over its gradients."""

import pytest
import torch

from edm_fast import backend, testing
from edm_fast.ops import _triton
from helpers import conv_inputs, op_checks
from helpers.conv_inputs import all_gradients, case_inputs

DEVICE = op_checks.BACKENDS["cuda"]
if (reason := _triton.reason(torch.ones(1, device=DEVICE))) is not None:
    pytest.skip(reason, allow_module_level=True)

from edm_fast.kernels import conv2d as kernels  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_float32")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
run, reference = op_checks.forced("conv2d", "cuda"), op_checks.forced("conv2d", "reference")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def inputs(*args, **kwargs):
    return case_inputs(*args, device=DEVICE, **kwargs)


def channels_last(*tensors):
    return [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)  # float32: with every op
@pytest.mark.parametrize("case", op_checks.cases("conv2d", real=False))
def test_half_precision_keeps_the_budget(case, dtype):
    op_checks.forward("conv2d", "cuda", case, dtype)
    op_checks.gradient("conv2d", "cuda", case, dtype)


GRADIENTS = conv_inputs.GRADIENTS | {
    "padding_3": ((2, 5, 5, 6), 9, {"padding": 3, "scale": 0.7}),
    "k5": ((2, 5, 5, 6), 9, {"k": 5, "scale": 0.7}),
    "several_parts": ((2, 3, 12, 11), 5, {"scale": 0.7}),
}


@dtypes
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_every_argument(name, dtype):
    shape, out, kwargs = GRADIENTS[name]
    testing.check(all_gradients(run), all_gradients(reference), inputs(shape, out, dtype=dtype, **kwargs))


@pytest.mark.parametrize("needed", [{0}, {1}, {2}, {3}, {4}, {2, 4}])
def test_gradients_of_some_arguments(needed):
    args, kwargs = inputs((2, 6, 5, 4), 7, scale=0.7)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(args)]
    wanted = [leaves[i] for i in needed]
    found, want = (torch.autograd.grad(f(*leaves, **kwargs).square().sum(), wanted) for f in (run, reference))
    torch.testing.assert_close(found, want)


@dtypes
@pytest.mark.parametrize("shape", [(2, 20, 9, 7), (1, 70, 12, 11), (3, 5, 1, 1), (300, 3, 2, 2)])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_one_pass_over_a_gradient(shape, scale, dtype):
    """Against sums in float64: as exact as float32 is, since the scaled gradient is not rounded before it is summed."""
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    (dy,) = channels_last(dy)
    with testing.poisoned():
        scaled, sums = kernels.finish_gradients(dy, scale)
        again = kernels.finish_gradients(dy, scale)
    exact = dy.double() * torch.tensor(scale).double()  # a kernel has it in float32
    assert (scaled is None) == (scale == 1.0) and torch.equal(sums, again[1])
    if scaled is not None:
        wide = dy.float() * scale  # the interpreter cuts off what bfloat16 has no room for
        assert ((scaled - wide).abs() <= torch.finfo(dtype).eps * wide.abs()).all() and torch.equal(scaled, again[0])
    assert sums.shape == shape[:2] and sums.dtype == torch.float32
    assert (sums - exact.sum((2, 3))).abs().max() <= 1e-6 * exact.abs().sum((2, 3)).max()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("single", [True, False])
def test_autocast(dtype, single):
    """As the reference under autocast: the dtype of results, gradients in that of their tensors, within rounding."""
    args, kwargs = inputs((2, 17, 9, 7), 20, scale=0.7)
    weights = torch.linspace(0.5, 1.5, 2 * 20 * 9 * 7, device=DEVICE).reshape(2, 20, 9, 7)  # sums that do not cancel

    def both(function):
        leaves = [t if single else t.to(dtype) for t in args]
        leaves = [t.detach().requires_grad_() for t in leaves]
        with torch.autocast(DEVICE, dtype):
            y = function(*leaves, **kwargs)
        return y, torch.autograd.grad((y.float() * weights).sum(), leaves)

    (y, found), (want, expected) = both(run), both(reference)
    assert y.dtype == want.dtype == dtype
    for got, near in zip((y, *found), (want, *expected), strict=True):
        assert got.dtype == near.dtype
        assert (got - near).abs().max() <= 4 * torch.finfo(dtype).eps * near.abs().max()


def test_second_derivatives():
    args, kwargs = inputs((2, 5, 5, 6), 7, scale=0.7)

    def second(function, *tensors):
        fresh = [t.detach().requires_grad_() for t in tensors]
        first = torch.autograd.grad(function(*fresh, **kwargs).square().sum(), fresh, create_graph=True)
        return torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), fresh)

    for got, want in zip(second(run, *args), second(reference, *testing.widened(args)), strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_a_batch_of_gradients():
    args, kwargs = inputs((2, 5, 5, 6), 7, scale=0.7)
    leaves = [t.detach().requires_grad_() for t in args]
    dys = torch.randn(3, 2, 7, 5, 6, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    y = run(*leaves, **kwargs)
    found = torch.autograd.grad(y, leaves, dys, is_grads_batched=True, retain_graph=True)
    for i, dy in enumerate(dys):
        torch.testing.assert_close([g[i] for g in found], [*torch.autograd.grad(y, leaves, dy, retain_graph=True)])


def test_opcheck():
    (x, weight, bias, emb, residual), _ = inputs((2, 3, 4, 3), 4)
    own = torch.ops.edm_fast
    torch.library.opcheck(own.conv2d_cuda.default, (x, weight, bias, emb, residual, 0.5, 1, None))
    plain = (x, weight, None, None, None, 1.0, 1, None)
    dy = own.conv2d_cuda(*plain)
    for op in (own.conv2d_cuda_adjoint, own.conv2d_cuda_weight_gradient):
        torch.library.opcheck(op.default, (dy, *plain))
    for scale in (1.0, 0.5):
        torch.library.opcheck(own.conv2d_tail_backward.default, (dy, scale))


def test_choice():
    """It serves where it saves passes, and images need not be turned over for it."""
    args, _ = inputs((2, 16, 4, 4), 16)
    slower = backend.ops()["conv2d"].implementations["cuda"].slower
    record = backend.ops()["conv2d"].arguments
    last = channels_last(*args)
    assert "short a tail" in slower(record(*last[:3])) and "channels last" in slower(record(*args))
    for able in (record(*last), record(last[0], args[1], scale=0.5, residual=args[4])):
        assert slower(able) is None if DEVICE == "cuda" else "interpreter" in slower(able)
    reasons = op_checks.choose("conv2d", *last[:2], clip=1.0).reasons
    assert "clip" in reasons["cuda"]
    if DEVICE == "cuda":
        assert op_checks.choose("conv2d", *last).backend == "cuda"
