"""Convolutions that only plans use: Winograd's F(4x4, 3x3) in float16, and the tail after another library's sums."""

import math
import types

import pytest
import torch

from edm_fast import testing
from edm_fast.cases import WINOGRAD_ERROR
from edm_fast.ops import _triton
from helpers import op_checks
from helpers.conv_inputs import case_inputs

DEVICE = op_checks.BACKENDS["triton"]
if (reason := _triton.reason(torch.ones(1, device=DEVICE))) is not None:
    pytest.skip(reason, allow_module_level=True)

from edm_fast.kernels import _conv2d_winograd as winograd  # noqa: E402
from edm_fast.kernels import conv2d as kernels  # noqa: E402

reference = op_checks.forced("conv2d", "reference")
norm = op_checks.forced("group_norm_silu", "reference")
HALF = math.sqrt(0.5)


def inputs(*args, **kwargs):
    return case_inputs(*args, device=DEVICE, **kwargs)


def error(found, exact):
    """rms, in that of the exact result."""
    return ((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


def statistics_fault(y, stats, groups):
    parts = y.double().reshape(len(y), groups, -1)
    exact = (parts.var(2, correction=0) + 1e-5).rsqrt()
    return max(((stats[0] - parts.mean(2)) * exact).abs().max(), (stats[1] / exact - 1).abs().max())


CASES = {
    "whole_tiles": ((2, 32, 8, 4), 20, torch.float16, {"emb": 2, "scale": HALF}),
    "odd": ((2, 20, 7, 9), 18, torch.float16, {"emb": 1}),
    "strided_without_padding": ((2, 16, 6, 5), 32, torch.bfloat16, {"padding": 0, "layout": "strided"}),
    "float32": ((2, 16, 5, 6), 16, torch.float32, {"emb": 1, "scale": HALF}),
    "one_pixel_padded_by_2": ((2, 16, 1, 1), 16, torch.float16, {"padding": 2}),
}


@pytest.mark.parametrize("library", [False, True], ids=["triton", "bmm"])
@pytest.mark.parametrize("name", CASES)
def test_winograd(name, library):
    """Within the budget of its rounded operands, and of the dtype of the image."""
    shape, out, dtype, more = CASES[name]
    (x, weight, _, rows, residual), rest = inputs(shape, out, dtype=dtype, **more)
    scale, padding = rest.get("scale", 1.0), rest.get("padding", 1)
    with testing.poisoned():
        packed = kernels.pack_winograd(weight)
        y = kernels.winograd(x, packed, rows, residual, scale, padding, library=library)
    exact = reference(*testing.widened([x, weight, None, rows, residual]), scale, padding)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, exact) < WINOGRAD_ERROR + torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("at_once", [2, 3])
def test_between_norms_with_some_images_at_a_time(at_once, monkeypatch):
    """The norm before, the statistics of the one after; a group of images has the bits of all, and its own NaN."""
    (x, weight, _, rows, residual), _ = inputs((3, 16, 8, 4), 24, dtype=torch.float16, emb=3)
    x[1, 0, 0, 0] = math.nan
    own = torch.linspace(-2, 2, 16, device=DEVICE).half(), torch.linspace(1, 3, 16, device=DEVICE).half()
    parts = torch.nan_to_num(x).double().reshape(3, 4, -1)
    moments = parts.mean(2).float(), (parts.var(2, correction=0) + 1e-5).rsqrt().float()
    monkeypatch.setattr(winograd, "images_at_once", lambda *args: at_once)
    prologue, statistics = kernels.Prologue(*moments, *own), kernels.Statistics(4, 1e-5)
    packed = kernels.pack_winograd(weight)
    y, stats = kernels.winograd(x, packed, rows, residual, prologue=prologue, statistics=statistics)
    normed = norm(*testing.widened([x, *own]), 4, 1e-5)
    exact = reference(normed, *testing.widened([weight, None, rows, residual]))
    fine = [0, 2]
    assert y[1].isnan().any() and error(y[fine], exact[fine]) < WINOGRAD_ERROR
    assert statistics_fault(y[fine], stats[:, fine], 4) < 1e-6


def test_images_at_once(monkeypatch):
    """Equal parts that fit 5/8 of the second-level cache, and one image where none does."""
    properties = types.SimpleNamespace(L2_cache_size=2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for cache, device in ((winograd.CACHE_BYTES, None), (5 * 2**17, torch.device("cuda"))):
        most = cache // (36 * 2 * 40 * 2)  # images of 2 tiles and 40 channels
        assert winograd.images_at_once(most, 2, 40, device) == most
        assert winograd.images_at_once(most + 1, 2, 40, device) == (most + 2) // 2
        assert winograd.images_at_once(3, cache, 1, device) == 1


def test_error_at_256_channels():
    """Between those of direct convolutions in float16 and bfloat16; the budget is not far above it."""
    (x, weight, *_), _ = inputs((1, 256, 8, 8), 16)
    x = torch.nn.functional.silu(x)
    exact = reference(x.double(), weight.double())
    direct = {
        d: error(reference(*(t.to(d).double() for t in (x, weight))), exact) for d in (torch.half, torch.bfloat16)
    }
    found = error(kernels.winograd(x.half(), kernels.pack_winograd(weight)), exact)
    assert 2 * direct[torch.half] < WINOGRAD_ERROR / 1.5 < found < WINOGRAD_ERROR < direct[torch.bfloat16]


@pytest.mark.parametrize("pixel, factor", [(2000.0, 1.0), (1.0, 1e-7)])
def test_neither_large_pixels_nor_small_weights_are_lost(pixel, factor):
    x = torch.full((1, 16, 4, 4), pixel, device=DEVICE)
    x[..., 1::2, :] *= -1
    weight = factor * inputs((1, 16, 4, 4), 16)[0][1]
    assert error(kernels.winograd(x, kernels.pack_winograd(weight)), reference(x.double(), weight.double())) < 2e-2


def test_refusals_and_nothing_to_do():
    weight = torch.ones(4, 3, 3, 3, device=DEVICE)
    packed, statistics = kernels.pack_winograd(weight), kernels.Statistics(2, 1e-5)
    with pytest.raises(ValueError, match="5 x 4 pixels"):
        kernels.winograd(torch.ones(1, 3, 5, 4, device=DEVICE), packed, statistics=statistics)
    y, stats = kernels.winograd(torch.ones(0, 3, 4, 4, device=DEVICE), packed, statistics=statistics)
    assert y.shape == (0, 4, 4, 4) and stats.shape == (2, 0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_finish(dtype, layout):
    (_, _, _, rows, residual), _ = inputs((2, 5, 7, 5), 12, dtype=dtype, emb=2, layout=layout)
    y = inputs((2, 12, 7, 5), 1, dtype=dtype, layout=layout)[0][0]
    exact = (y.double() + rows[:, :, None, None].double() + residual.double()) * HALF
    found, stats = kernels.finish(y, rows, residual, HALF, statistics=kernels.Statistics(3, 1e-5))
    assert (found - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    assert statistics_fault(found, stats, 3) < 1e-6
    assert (found.data_ptr() == y.data_ptr()) == (layout == "channels_last")
