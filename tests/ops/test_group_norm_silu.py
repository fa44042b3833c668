"""group_norm_silu: the reference against its definition, derivatives, and every backend against the reference."""

import op_checks
import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.ops import group_norm_silu


def defined(x, weight, bias, groups, eps=1e-5, scale=None, shift=None, silu=True):
    """The formulas of the op's docstring, group by group."""
    y = torch.empty_like(x)
    size = x.shape[1] // groups
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        group = x[:, part].flatten(1)
        mean = group.mean(dim=1, keepdim=True)
        var = (group - mean).square().mean(dim=1, keepdim=True)
        y[:, part] = ((group - mean) / torch.sqrt(var + eps)).reshape(x[:, part].shape)
    column = (1, -1, *[1] * (x.ndim - 2))
    y = y * weight.reshape(column) + bias.reshape(column)
    if scale is not None:
        per_image = (*scale.shape, *[1] * (x.ndim - 2))
        y = shift.reshape(per_image) + y * (scale.reshape(per_image) + 1)
    return y * torch.sigmoid(y) if silu else y


@pytest.mark.parametrize("case", op_checks.cases("group_norm_silu", real=False))
def test_reference_is_the_definition(case):
    args, kwargs = case.inputs(torch.float64)
    torch.testing.assert_close(group_norm_silu.reference(*args, **kwargs), defined(*args, **kwargs))


def test_statistics_of_half_precision_are_wide():
    """A mean of 1000 leaves float16 statistics no digits; float32 ones do."""
    x = (torch.randn(1, 4, 64, 64) + 1000).half()
    y = group_norm_silu(x, torch.ones(4), torch.zeros(4), 1, silu=False)
    assert y.dtype == torch.float16
    assert abs(y.float().mean()) < 0.01 and abs(y.float().std() - 1) < 0.01


def test_derivatives():
    x, weight, bias, scale, shift = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 4, 2, 3), (4,), (4,), (2, 4), (2, 4))
    )
    assert torch.autograd.gradcheck(
        lambda x, weight, bias, scale, shift: group_norm_silu(x, weight, bias, 2, scale=scale, shift=shift),
        (x, weight, bias, scale, shift),
    )


@pytest.mark.parametrize("name", op_checks.backends("group_norm_silu"))
@pytest.mark.parametrize("case", op_checks.cases("group_norm_silu"))
def test_backend_keeps_the_budget(name, case):
    op_checks.forward("group_norm_silu", name, case, torch.float32)


@pytest.mark.parametrize(
    "x, groups, kwargs, message",
    [
        ((4,), 1, {}, "shape"),
        ((1, 4, 2, 2), 3, {}, "3 groups"),
        ((1, 4, 2, 2), 0, {}, "0 groups"),
        ((1, 4, 2, 2), 2, {"scale": torch.zeros(1, 4)}, "together"),
        ((1, 4, 2, 2), 2, {"scale": torch.zeros(1, 4), "shift": torch.zeros(2, 4)}, "shift"),
    ],
)
def test_bad_input(x, groups, kwargs, message):
    with pytest.raises(UserError, match=message):
        group_norm_silu(torch.zeros(x), torch.ones(4), torch.zeros(4), groups, **kwargs)
    with pytest.raises(UserError, match="weight"):
        group_norm_silu(torch.zeros(1, 4, 2, 2), torch.ones(3), torch.zeros(4), 2)
