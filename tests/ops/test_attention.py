"""attention: the reference against its definition, derivatives, and every backend against the reference."""

import math

import op_checks
import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.ops import attention
from edm_fast.ops.attention import attention_weights


def defined(qkv, heads):
    """The op's docstring, one image, head and query pixel at a time."""
    n, channels, h, w = qkv.shape
    size = channels // (3 * heads)
    flat, out = qkv.reshape(n, channels, h * w), qkv.new_zeros(n, heads * size, h * w)
    for image in range(n):
        for head in range(heads):
            q, k, v = (flat[image, head * 3 * size + part : (head + 1) * 3 * size : 3] for part in range(3))
            for pixel in range(h * w):
                weights = torch.softmax(q[:, pixel] @ k / math.sqrt(size), dim=0)
                out[image, head * size : (head + 1) * size, pixel] = v @ weights
    return out.reshape(n, heads * size, h, w)


@pytest.mark.parametrize("case", op_checks.cases("attention", real=False))
def test_reference_is_the_definition(case):
    (qkv, heads), _ = case.inputs(torch.float64)
    torch.testing.assert_close(attention.reference(qkv, heads), defined(qkv, heads))
    wide = attention.reference(qkv.float(), heads)
    torch.testing.assert_close(wide, defined(qkv, heads).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_does_not_overflow(dtype):
    qkv = (torch.randn(1, 3 * 64, 4, 4) * 30).to(dtype)  # products far beyond the range of float16
    y = attention(qkv, 1)
    assert y.dtype == dtype and y.isfinite().all()
    torch.testing.assert_close(y.double(), defined(qkv.double(), 1), rtol=0.05, atol=1.0)


def test_autocast_keeps_the_wide_product():
    qkv = (torch.randn(2, 3 * 64, 8, 8) * 3).bfloat16()
    q, k = qkv[:, 0::3].flatten(2), qkv[:, 1::3].flatten(2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_weights(q, k)
    assert torch.equal(inside, attention_weights(q, k))


def test_equal_keys_average_the_values():
    qkv = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    qkv[:, 1] = 0.3  # one key everywhere
    torch.testing.assert_close(attention(qkv, 1), qkv[:, 2:].mean(dim=(2, 3), keepdim=True).expand(1, 1, 2, 2))


def test_derivatives():
    qkv = torch.randn(2, 3 * 2 * 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, 2), qkv)
    assert torch.autograd.gradgradcheck(lambda x: attention(x, 2), qkv)


@pytest.mark.parametrize("name", op_checks.backends("attention"))
@pytest.mark.parametrize("case", op_checks.cases("attention"))
def test_backend_keeps_the_budget(name, case):
    op_checks.forward("attention", name, case, torch.float32)


@pytest.mark.parametrize("channels, heads", [(10, 1), (12, 3), (12, 0), (0, 1)])
def test_bad_input(channels, heads):
    with pytest.raises(UserError, match="heads"):
        attention(torch.zeros(1, channels, 2, 2), heads)
    with pytest.raises(UserError, match="4 dimensions"):
        attention(torch.zeros(1, 3, 2), 1)
