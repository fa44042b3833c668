"""conv2d: the reference against its definition, derivatives, and every backend against the reference."""

import op_checks
import pytest
import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.ops import conv2d


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
    torch.testing.assert_close(conv2d.reference(*args, **kwargs), defined(*args, **kwargs))


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


@pytest.mark.parametrize("name", op_checks.backends("conv2d"))
@pytest.mark.parametrize("case", op_checks.cases("conv2d"))
def test_backend_keeps_the_budget(name, case):
    op_checks.forward("conv2d", name, case, torch.float32)


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
