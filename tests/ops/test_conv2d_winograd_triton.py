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

from edm_fast.kernels import _conv2d_blocks  # noqa: E402
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
    """They fit 5/8 of the second-level cache, or are one; of those that do, they leave least of the chip idle."""
    properties = types.SimpleNamespace(L2_cache_size=2**20, multi_processor_count=50)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    chip = winograd.Chip.of(torch.device("cuda"))
    assert chip == (5 * 2**17, 50) and winograd.Chip.of(torch.device("cpu")) == winograd.Chip()
    for outputs, library in ((48, False), (48, True), (300, False)):
        in_place = outputs == 48 and not library
        width = max(16, outputs) if in_place else 16 + outputs
        most = chip.cache // (36 * width * 2)  # images of one tile
        found = winograd.images_at_once(chip, most, 1, 16, outputs, library)
        assert found <= most and winograd.products(chip, most, 16, outputs, library).in_place == in_place
        assert winograd.images_at_once(chip, most + 1, 1, 16, outputs, library) <= most
    assert winograd.images_at_once(chip, 3, 2**15, 16, 48, False) == 1
    # 36 places of 512 tiles, 8 images, would be 144 blocks of 128 for 132 multiprocessors, which take two turns
    chip = winograd.Chip(32 * 2**20, 132)
    images = winograd.images_at_once(chip, 64, 64, 512, 256, False)
    b = winograd.products(chip, images * 64, 512, 256, False).blocks
    blocks = 36 * math.ceil(images * 64 / b.m) * math.ceil(256 / b.n)
    assert blocks / (132 * math.ceil(blocks / 132)) > 0.9


@pytest.mark.parametrize("channels, outputs", [(16, 40), (40, 16), (32, 32)])
def test_products_where_tiles_were(channels, outputs, monkeypatch):
    """The same bits as beside them, and no tensor of products; not where two programs would read the same tiles."""
    (x, weight, _, rows, residual), _ = inputs((2, channels, 9, 8), outputs, dtype=torch.float16, emb=2)
    packed, whole, pointers = kernels.pack_winograd(weight), winograd.products, []

    def multiply(tiles, *args, multiply=winograd._multiply):
        result = multiply(tiles, *args)
        pointers.append(result.data_ptr() == tiles.data_ptr())
        return result

    monkeypatch.setattr(winograd, "_multiply", multiply)
    in_place = kernels.winograd(x, packed, rows, residual)
    pitches = {"pitch": 16 * math.ceil(channels / 16), "result_pitch": 16 * math.ceil(outputs / 16)}
    monkeypatch.setattr(winograd, "products", lambda *args: whole(*args)._replace(in_place=False, **pitches))
    beside = kernels.winograd(x, packed, rows, residual)
    assert pointers == [True, False] and torch.equal(in_place, beside)
    for how in (whole(winograd.Chip(), 4096, 16, outputs, False) for outputs in (256, 257)):
        assert how.in_place == (how.blocks.n >= 256 and how.pitch == 256)


@pytest.mark.parametrize("c, outputs", [(64, 72), (72, 64), (64, 264), (72, 264)])
def test_rows_of_tiles_and_products_begin_at_multiples_of_16(c, outputs):
    """Kernels are compiled for that, and read and write 16 bytes at a time; the library has no such rows."""
    how = winograd.products(winograd.Chip(), 4096, c, outputs, False)
    assert how.in_place == (outputs < 256) == (how.pitch == how.result_pitch)
    assert how.pitch % 16 == how.result_pitch % 16 == 0 and how.pitch >= c and how.result_pitch >= outputs
    assert how.size == 36 * 4096 * 2 * (how.pitch + how.result_pitch * (outputs > 256))
    by_library = winograd.products(winograd.Chip(), 4096, c, outputs, True)
    assert (by_library.pitch, by_library.result_pitch) == (c, outputs)


def test_products_are_of_one_part():
    """As they are launched, also where the model would rather split the sums of few tiles."""
    clocks, blocks = _conv2d_blocks.cheapest(4, 64, 2048, 1, torch.float16, phases=36)
    how = winograd.products(winograd.Chip(), 4, 2048, 64, False)
    assert blocks.splits > 1 and how.blocks.splits == 1 and how.clocks > clocks


def test_the_rest_of_the_images_fits_the_cache_too():
    """Smaller blocks would have its products beside the tiles."""
    chip, sizes = winograd.Chip(25 * 2**20, 108), (64, 256, False)
    small = _conv2d_blocks.cheapest(80 * 16, 256, 64, 1, torch.float16, phases=36, processors=108)[1]
    whole, rest = (winograd.products(chip, images * 16, *sizes) for images in (88, 80))
    assert small.n < 256 and whole.in_place and rest.in_place and rest.size < whole.size <= chip.cache
    for c, outputs, tiles, n in ((64, 256, 16, 256), (32, 256, 64, 64), (128, 192, 16, 256), (512, 512, 16, 64)):
        images = winograd.images_at_once(chip, n, tiles, c, outputs, False)
        parts = {images, n % images or images}
        assert max(winograd.products(chip, part * tiles, c, outputs, False).size for part in parts) <= chip.cache


def test_early_launches(monkeypatch):
    """Every kernel waits for the one before it, and is launched early where that is one of ours."""
    launches, own = [], {}

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def launch(*args, EARLY, launch_pdl=False, **kwargs):
                launches.append((self.kernel.fn.__name__, EARLY, launch_pdl))
                self.kernel[grid](*args, EARLY=False, **kwargs)

            return launch

    for module, name in (
        (winograd, "_winograd_input"),
        (winograd._conv2d_products, "_conv2d_fwd"),
        (winograd, "_winograd_output"),
    ):
        own[name] = getattr(module, name)
        monkeypatch.setattr(module, name, Recorded(own[name]))
    monkeypatch.setattr(winograd, "images_at_once", lambda *args: 2)
    (x, weight, _, rows, _), _ = inputs((3, 16, 8, 4), 24, dtype=torch.float16, emb=3)
    packed = kernels.pack_winograd(weight)
    found = kernels.winograd(x, packed, rows, early=True)
    assert launches == [(name, True, i > 0) for i, name in enumerate([*own] * 2)]
    launches.clear()
    assert torch.equal(found, kernels.winograd(x, packed, rows)) and {launch[1:] for launch in launches} == {
        (False, False)
    }
    with pytest.raises(ValueError, match="library"):
        kernels.winograd(x, packed, rows, early=True, library=True)
    assert kernels.early_reason(torch.device("cpu")) is not None


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
