"""The experiment of convolutions in float8: what it computes, what that costs in error, and where it is refused."""

import math

import pytest
import torch

from edm_fast.evaluation._networks import relative_error
from edm_fast.ops import _triton
from helpers import op_checks
from helpers.conv_inputs import case_inputs

DEVICE = op_checks.BACKENDS["triton"]
if (reason := _triton.reason(torch.ones(1, device=DEVICE))) is not None:
    pytest.skip(reason, allow_module_level=True)

from edm_fast.kernels import _conv2d_float8 as float8  # noqa: E402
from edm_fast.kernels._conv2d_blocks import Blocks  # noqa: E402

reference = op_checks.forced("conv2d", "reference")

if (reason := float8.reason(torch.device(DEVICE), 32)) is not None:
    pytest.skip(reason, allow_module_level=True)

CASES = {
    "3x3": ((2, 32, 5, 6), 20, 3, None),
    "1x1": ((2, 64, 3, 3), 70, 1, None),
    "split": ((2, 64, 4, 4), 40, 3, Blocks(64, 32, 32, 4, 2, 3)),
}


def rounded(t, dims):
    values, factor = float8.scaled(t, dims)
    return values.double() * factor.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forward(name, dtype):
    """The convolution of the rounded operands, exactly; and its error against that of the operands."""
    shape, out, k, plan = CASES[name]
    (x, weight, bias, _, residual), _ = case_inputs(shape, out, k, dtype=dtype, device=DEVICE)
    own = torch.logspace(-2, 2, out, device=DEVICE, dtype=torch.float32)  # a factor of each output
    weight = weight * own[:, None, None, None].to(dtype)
    tail = {"residual": residual.double(), "scale": math.sqrt(0.5)}
    y = float8.forward(x, float8.pack(weight), bias[None], residual, math.sqrt(0.5), k // 2, plan)
    want = reference(rounded(x, (0, 1, 2, 3)), rounded(weight, (1, 2, 3)), bias.double(), **tail)
    exact = reference(x.double(), weight.double(), bias.double(), **tail)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    scale = want.abs().amax((0, 2, 3), keepdim=True)
    single = dtype == torch.float32 and DEVICE == "cpu"  # matrix units keep 14 bits of their own sums
    assert ((y - want) / scale).abs().max() < (1e-5 if single else 1e-3)
    assert 0.01 < relative_error([y.cpu()], [exact.cpu()]) < 0.06


def test_factors():
    for t in (torch.randn(7, 32, 3, 3) * 1e-6, torch.zeros(2, 32, 1, 1), torch.full((1, 32, 1, 1), 6e4).half()):
        values, factor = float8.scaled(t.to(DEVICE), (1, 2, 3))
        assert factor.shape == (len(t), 1, 1, 1) and values.float().isfinite().all()
        assert ((values.float() * factor).cpu() - t).abs().max() <= t.abs().max() / 16
        assert (values.float().abs().amax((1, 2, 3)) == (448 if t.any() else 0)).all()


def test_where_it_is_refused(monkeypatch):
    x = torch.ones(1, 48, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match="multiple of 32 channels, not 48"):
        float8.forward(x, float8.pack(torch.ones(8, 48, 3, 3, device=DEVICE)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "capability 8.9" in float8.reason(torch.device("cuda"), 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert float8.reason(torch.device("cuda"), 64) is None
