"""pixel_norm on Triton: outputs and gradients of every part within the budget, layouts, reasons.

Without a GPU the kernels run in Triton's interpreter.
"""

import pytest
import torch

from edm_fast import cases, testing
from helpers import op_checks

reference = op_checks.forced("pixel_norm", "reference")
kernels = pytest.importorskip("edm_fast.kernels.pixel_norm")
DEVICE = op_checks.BACKENDS["triton"]
on_triton = op_checks.forced("pixel_norm", "triton")
HALVES = (torch.float16, torch.bfloat16)
CASES = {case.name: case for case in cases.cases("pixel_norm", real=False)}


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_float32(name):
    """With the result; small sizes, groups, every third channel, strided and empty."""
    op_checks.gradient("pixel_norm", "triton", CASES[name], torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["all_contiguous", "one_gain_channels_last", "heads_channels_last", "small_values"])
def test_gradients_in_half_precision(name, dtype):
    op_checks.gradient("pixel_norm", "triton", CASES[name], dtype)


def image(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def test_blocks_of_channels_where_no_norm_is_taken():
    call = (image(2, 320, 3, 5), image(2, 320)), {"norm": False, "silu": True}
    assert kernels.tile(15, 320, None)[0] == 64
    testing.check(op_checks.gradients("pixel_norm", on_triton), op_checks.gradients("pixel_norm", reference), call)


def test_gain_of_another_dtype():
    x, gain = image(2, 24, 3, 3, dtype=torch.float16), image(1, 24) + 1e-4
    x.requires_grad_(), gain.requires_grad_()
    y = on_triton(x, gain, silu=True)
    dx, dgain = torch.autograd.grad(y.float().square().sum(), (x, gain))
    assert y.dtype == dx.dtype == torch.float16 and dgain.dtype == torch.float32
    want = reference(x.detach().double(), gain.double(), silu=True)
    assert (y.double() - want).abs().max() < 4e-3


def test_pixels_of_zeros():
    x = image(2, 24, 2, 3)
    x[1, :, 1] = 0
    call = (x, image(2, 24)), {"groups": 2, "interleaved": 3}
    y, dx, dgain = op_checks.gradients("pixel_norm", on_triton)(*call[0], **call[1])
    assert not y[1, :, 1].any() and dx.isfinite().all() and dgain.isfinite().all()
    testing.check(op_checks.gradients("pixel_norm", on_triton), op_checks.gradients("pixel_norm", reference), call)


def test_images_do_not_depend_on_their_batch():
    x, gain = image(3, 40, 9, 9), image(3, 40)
    run = op_checks.gradients("pixel_norm", on_triton)
    whole = run(x, gain, silu=True)
    for i in range(3):
        (one, _, _), y = run(x[i : i + 1], gain[i : i + 1], silu=True), whole[0][i : i + 1]
        assert torch.equal(one, y)


def test_not_a_number_stays_in_its_pixel():
    x = image(2, 8, 3, 3)
    x[0, 2, 1, 1] = float("nan")
    for result in op_checks.gradients("pixel_norm", on_triton)(x, silu=True):
        assert result.isnan().sum() == 8 and result[0, :, 1, 1].isnan().all()


def test_large_and_small_values_of_silu():
    m = torch.tensor([-200.0, -90, -20, -1e-3, 0, 1e-3, 20, 90, 200], device=DEVICE).reshape(1, 1, 1, 9)
    for found in op_checks.gradients("pixel_norm", on_triton)(m, norm=False, silu=True):
        assert found.isfinite().all()


def test_second_derivative():
    x, gain = image(2, 12, 2, 3).requires_grad_(), image(2, 12)

    def second(function):
        (dx,) = torch.autograd.grad(function(x, gain, silu=True).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    torch.testing.assert_close(second(on_triton), second(reference), rtol=1e-4, atol=1e-4)


def test_opcheck():
    forward, backward = torch.ops.edm_fast.pixel_norm_triton, torch.ops.edm_fast.pixel_norm_triton_backward
    for gain in (None, image(1, 6, dtype=torch.float16)):
        x = image(2, 6, 3, 5, dtype=torch.float16)
        args = (x, gain, True, True, 1, 3, 1e-4)
        torch.library.opcheck(forward.default, args)
        torch.library.opcheck(backward.default, (torch.ones_like(x), *args))


def test_reasons():
    x = image(2, 20, 3, 3)
    choice = op_checks.choose("pixel_norm", x)
    if DEVICE == "cuda":
        assert choice.backend == "triton"
        assert "channels last" in op_checks.choose("pixel_norm", x.contiguous()).reasons["triton"]
    else:
        assert choice.backend != "triton" and "interpreter" in choice.reasons["triton"]
    assert "float64" in op_checks.choose("pixel_norm", x.double()).reasons["triton"]
    assert "every 5th" in op_checks.choose("pixel_norm", x, interleaved=5).reasons["triton"]
    wide = torch.empty(1, 20000, 1, 1, device=DEVICE)
    assert "20000 channels" in op_checks.choose("pixel_norm", wide).reasons["triton"]


def test_tiles_hold_what_is_there():
    for channels in (1, 3, 64, 192, 384, 448, 576, 768, 1152, 1792, 3584, 16384):
        for space in (1, 64, 256, 4096):
            for groups in (None, 1):
                width, blocks = kernels.tile(space, channels, groups)
                assert width <= blocks["BLOCK_C"] and (width >= channels or groups is None)
                assert blocks["BLOCK_P"] * blocks["BLOCK_C"] <= max(kernels.TILE, 1024 * blocks["num_warps"])
