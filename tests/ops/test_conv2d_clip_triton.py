"""What EDM2 asks of the Triton conv2d: results within limits, a factor and SiLU of the image as it is read."""

import math

import pytest
import torch
import torch.nn.functional as F

from edm_fast import testing
from edm_fast.ops import _triton
from helpers import op_checks
from helpers.conv_inputs import case_inputs

DEVICE = op_checks.BACKENDS["triton"]
if (reason := _triton.reason(torch.ones(1, device=DEVICE))) is not None:
    pytest.skip(reason, allow_module_level=True)

from edm_fast.kernels import conv2d as kernels  # noqa: E402
from edm_fast.kernels._conv2d_blocks import Blocks  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_float32")
reference = op_checks.forced("conv2d", "reference")
CLIP, SCALE = 0.75, math.sqrt(0.5)


def ways():
    """(function of an image, weight, rows, residual and more, whether it is Winograd's)"""
    split = Blocks(64, 16, 16, 4, 2, 3)
    yield "whole", lambda x, w, r, a, **more: kernels.forward(x, kernels.pack(w), r, a, SCALE, 1, **more), False
    yield (
        "split",
        lambda x, w, r, a, **more: kernels.forward(x, kernels.pack(w), r, a, SCALE, 1, plan=split, **more),
        False,
    )
    yield (
        "winograd",
        lambda x, w, r, a, **more: kernels.winograd(x, kernels.pack_winograd(w), r, a, SCALE, **more),
        True,
    )


WAYS = {name: rest for name, *rest in ways()}


def inputs(dtype):
    (x, weight, _, rows, residual), _ = case_inputs((2, 32, 8, 4), 20, dtype=dtype, emb=2, device=DEVICE)
    return x, weight, rows, residual


def same(found, exact, winograd, dtype):
    """Relative to results of up to 3 or so before they are kept within limits."""
    bound = 8e-3 if winograd else 4 * torch.finfo(dtype).eps
    assert (found - exact).abs().max() <= 3 * bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_results_are_kept_within_limits(way, dtype):
    """As they are written: the next norm has the statistics of what was kept, and what is no number stays none."""
    run, winograd = WAYS[way]
    x, weight, rows, residual = inputs(dtype)
    wide = testing.widened([x, weight, None, rows, residual])
    exact, free = reference(*wide, SCALE, 1, clip=CLIP), reference(*wide, SCALE, 1)
    assert 0.1 < (free.abs() > CLIP).double().mean() < 0.9
    found, stats = run(x, weight, rows, residual, clip=CLIP, statistics=kernels.Statistics(4, 1e-5))
    same(found, exact, winograd, dtype)
    assert found.abs().max() == CLIP
    assert (stats[0] - found.double().reshape(2, 4, -1).mean(2)).abs().max() < 1e-6
    residual[1, 3, 2, 1] = math.nan
    assert run(x, weight, rows, residual, clip=CLIP).isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_after_another_librarys_sums_and_an_upsampling(dtype):
    x, weight, rows, residual = inputs(dtype)
    sums = reference(x, weight).contiguous(memory_format=torch.channels_last)
    exact = reference(*testing.widened([x, weight, None, rows, residual]), SCALE, 1, clip=CLIP)
    same(kernels.finish(sums, rows, residual, SCALE, clip=CLIP), exact, False, dtype)
    large = x.double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    exact = reference(large, weight.double(), None, rows.double(), None, SCALE, 1, clip=CLIP)
    same(kernels.upsample(x, kernels.pack_phases(weight), rows, None, SCALE, clip=CLIP), exact, False, dtype)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_factor_and_silu_of_the_image(way, count):
    run, winograd = WAYS[way]
    x, weight, rows, residual = inputs(torch.float32)
    gain = None if not count else 1 + torch.linspace(-1, 1, 32 * count, device=DEVICE).reshape(count, 32)
    image = x.double() if gain is None else x.double() * gain[:, :, None, None].double()
    for silu in (False, True):
        read = F.silu(image) if silu else image
        exact = reference(read, *testing.widened([weight, None, rows, residual]), SCALE, 1)
        found = run(x, weight, rows, residual, prologue=kernels.Factor(gain, silu))
        same(found, exact, winograd, torch.float32)
