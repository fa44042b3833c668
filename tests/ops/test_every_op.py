"""Every op over its case table: each backend within the budget, one result for all numbers of threads, bound calls."""

import pytest
import torch

from edm_fast import backend, cases, native, testing
from helpers import op_checks

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def takes(op, name, call):
    op = backend.ops()[op]
    return op.implementations[name].reason(op.arguments(*call[0], **call[1])) is None


def calls(real=None, wanted=("cpu", "cuda"), gradient=False, dtypes=(torch.float32, torch.float64)):
    """(op, backend, case, dtype) for all that the backends take."""
    found = []
    for op in cases.CASES:
        for name in op_checks.backends(op, wanted=wanted, gradient=gradient):
            for dtype in dtypes:
                device = op_checks.BACKENDS[name.values[0]]
                few = real is None and device == "cpu" != name.values[0]  # Triton's interpreter takes no real layers
                if takes(op, *name.values, cases.SMALL[op].inputs(dtype, device)):
                    for case in cases.cases(op, False if few else real):
                        label = f"{op}-{name.values[0]}-{case.name}-{str(dtype)[6:]}"
                        found.append(pytest.param(op, *name.values, case, dtype, marks=name.marks, id=label))
    return found


@pytest.mark.parametrize("op, name, case, dtype", calls())
def test_backend_keeps_the_budget(op, name, case, dtype):
    op_checks.forward(op, name, case, dtype)


@pytest.mark.parametrize("op, name, case, dtype", calls(real=False, gradient=True, dtypes=[torch.float32]))
def test_gradients_keep_the_budget(op, name, case, dtype):
    op_checks.gradient(op, name, case, dtype)


@needs_native
@pytest.mark.parametrize("op, name, case, dtype", calls(real=False, wanted=("cpu",)))
def test_threads_agree(op, name, case, dtype):
    """On each instruction set; the gradients of all arguments, too, where the op has them."""
    args, kwargs = case.inputs(dtype)
    function, threads = op_checks.forced(op, name), torch.get_num_threads()
    derive = op_checks.gradients(op, function) if backend.ops()[op].implementations[name].differentiable else None
    if (op, case.name) == ("conv2d", "k1"):  # the gradient of its weight is torch's, summed in parts of threads
        derive = testing.gradients(function)
    try:
        for isa in filter(native.available, native.ISAS):
            results = []
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                with native.use_isa(isa):
                    found = testing.outputs(function(*args, **kwargs))
                    results.append([*found, *(derive(*args, **kwargs) if derive else ())])
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
    finally:
        torch.set_num_threads(threads)


def within(image):
    """An image channels last as some of the channels of a wider one."""
    n, c, h, w = image.shape
    wide = torch.full((n, c + 5, h, w), torch.nan).to(memory_format=torch.channels_last)
    wide[:, 2 : 2 + c] = image
    return wide[:, 2 : 2 + c]


@needs_native
@pytest.mark.parametrize("op", [name for name, op in backend.ops().items() if op.implementations["cpu"].lower])
def test_a_bound_call_gives_the_bits_of_the_op(op):
    args, kwargs = cases.SMALL[op].inputs(torch.float32)
    args = [testing.laid_out(a, "channels_last") if torch.is_tensor(a) and a.ndim == 4 else a for a in args]
    expected = op_checks.forced(op, "cpu")(*args, **kwargs)
    how, record = backend.ops()[op].implementations["cpu"], backend.ops()[op].arguments(*args, **kwargs)
    scratch = torch.full(how.scratch(record), torch.nan) if how.scratch else None
    result = torch.full_like(expected, torch.nan)
    how.lower(result, record, scratch)(2)
    assert torch.equal(result, expected)
    # in plans an image may lie in a wider one, and so may what these two write
    record = backend.ops()[op].arguments(
        *(within(a) if torch.is_tensor(a) and a.ndim == 4 else a for a in args), **kwargs
    )
    for wide in (result, within(result)) if op in ("attention", "pixel_norm") else (result,):
        wide.fill_(torch.nan)
        how.lower(wide, record, scratch)(2)
        assert torch.equal(wide, expected)
