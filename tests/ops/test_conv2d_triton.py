"""The Triton conv2d: through the op, and its launchers with prologue, statistics and upsampling."""

import math

import pytest
import torch

from edm_fast import backend, testing
from edm_fast.backend import BackendError
from edm_fast.ops import _triton, conv2d
from helpers import conv_inputs, op_checks
from helpers.conv_inputs import all_gradients, case_inputs

DEVICE = op_checks.BACKENDS["triton"]
if (reason := _triton.reason(torch.ones(1, device=DEVICE))) is not None:
    pytest.skip(reason, allow_module_level=True)

from edm_fast.kernels import _conv2d_blocks  # noqa: E402
from edm_fast.kernels import conv2d as kernels  # noqa: E402
from edm_fast.kernels._conv2d_blocks import Blocks  # noqa: E402

conv2d_reference = op_checks.forced("conv2d", "reference")
group_norm_silu_reference = op_checks.forced("group_norm_silu", "reference")
upfirdn_reference = op_checks.forced("upfirdn", "reference")
pytestmark = pytest.mark.usefixtures("plain_float32")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF = math.sqrt(0.5)
run = op_checks.forced("conv2d", "triton")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
single_and_half = pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)  # bfloat16 differs in its conversions alone


def inputs(*args, **kwargs):
    return case_inputs(*args, device=DEVICE, **kwargs)


def drawn(*shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(device=DEVICE, dtype=dtype)


@dtypes
@pytest.mark.parametrize("case", op_checks.cases("conv2d", real=False))
def test_forward(case, dtype):
    op_checks.forward("conv2d", "triton", case, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="too large for Triton's interpreter")
@dtypes
@pytest.mark.parametrize("case", op_checks.cases("conv2d", real=True))
def test_real_layers(case, dtype):
    op_checks.forward("conv2d", "triton", case, dtype)
    op_checks.gradient("conv2d", "triton", case, dtype)


GRADIENTS = conv_inputs.GRADIENTS | {
    "channels_last": ((2, 16, 5, 6), 32, {"layout": "channels_last", "scale": 0.7}),
    "padding_2": ((2, 5, 5, 6), 9, {"padding": 2, "scale": 0.7}),
    "k1": ((2, 5, 5, 6), 9, {"k": 1, "scale": 0.7}),
    "one_channel": ((2, 1, 5, 6), 1, {}),
}


@dtypes
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_every_argument(name, dtype):
    shape, out, kwargs = GRADIENTS[name]
    call = inputs(shape, out, dtype=dtype, **kwargs)
    testing.check(all_gradients(run), all_gradients(conv2d_reference), call)


def test_gradients_of_float32_weights_of_a_half_image():
    (x, weight, bias, emb, residual), _ = inputs((2, 5, 6, 4), 7)
    args = x.half(), weight, bias, emb.half(), residual.half()

    def reference(x, weight, *rest):
        return conv2d_reference(x, weight.to(x.dtype), *rest)

    _, *found = all_gradients(run)(*args)
    _, *expected = all_gradients(reference)(*args)
    for got, want, arg in zip(found, expected, args, strict=True):
        assert got.dtype == arg.dtype
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


def test_second_derivatives():
    def second(function):
        def gradients(*args, **kwargs):
            fresh = [t.detach().requires_grad_() for t in args]
            first = torch.autograd.grad(function(*fresh, **kwargs).square().sum(), fresh, create_graph=True)
            return torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), fresh)

        return gradients

    args, kwargs = inputs((2, 5, 5, 6), 7, scale=0.7)
    exact = second(conv2d_reference)(*testing.widened(args), **kwargs)
    found = second(run)(*args, **kwargs)
    for got, want in zip(found, exact, strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()


# every way of cutting the work: narrow and wide tiles, whole steps and ragged ones, parts of the sum
PLANS = {
    "ragged": ((2, 5, 7, 9), 6, 3, Blocks(64, 16, 32, 4, 2)),
    "ragged_split": ((2, 5, 7, 9), 6, 3, Blocks(64, 16, 16, 4, 2, 3)),
    "even": ((2, 32, 7, 5), 20, 3, Blocks(64, 16, 32, 4, 2)),
    "even_split": ((2, 32, 4, 4), 40, 3, Blocks(64, 32, 16, 4, 2, 5)),
    "split_with_nothing_left": ((1, 16, 4, 4), 8, 3, Blocks(64, 16, 16, 4, 2, 7)),
    "wide": ((1, 16, 8, 12), 300, 1, Blocks(64, 256, 16, 8, 2)),
    "many_tiles": ((3, 3, 16, 17), 20, 3, Blocks(64, 16, 32, 4, 2)),
}


@single_and_half
@pytest.mark.parametrize("name", PLANS)
def test_every_plan(name, dtype):
    shape, out, k, plan = PLANS[name]
    args, kwargs = inputs(shape, out, k, dtype=dtype, emb=shape[0], scale=HALF)

    def planned(x, weight, bias, emb, residual, scale):
        return kernels.forward(x, kernels.pack(weight), emb + bias, residual, scale, k // 2, plan=plan)

    testing.check(planned, conv2d_reference, (args, kwargs))


PROLOGUES = {
    "tile_of_one_image": ((2, 32, 8, 8), 20, 3, 8, Blocks(64, 32, 32, 4, 2)),
    "several_images": ((3, 32, 4, 4), 20, 3, 4, None),
    "odd": ((2, 12, 7, 5), 10, 3, 3, None),
    "k1": ((2, 12, 7, 5), 10, 1, 3, None),
    "split": ((2, 32, 8, 8), 20, 3, 8, Blocks(64, 32, 32, 4, 2, 2)),
}


def prologue_of(x, norm, groups, silu):
    n, wide = x.shape[0], x.double()
    parts = wide.reshape(n, groups, -1)
    mean, var = parts.mean(2), parts.var(2, correction=0)
    return kernels.Prologue(mean.float(), (var + 1e-5).rsqrt().float(), *norm, silu=silu)


@single_and_half
@pytest.mark.parametrize("adaptive", ["plain", "each", "shared"])
@pytest.mark.parametrize("name", PROLOGUES)
def test_prologue(name, adaptive, dtype):
    """The norm of x, then the convolution; the padding is zero after the norm, and SiLU(bias) would not be."""
    (n, c, h, w), out, k, groups, plan = PROLOGUES[name]
    (x, weight, _, emb, residual), _ = inputs((n, c, h, w), out, k, dtype=dtype, emb=n)
    norm = [drawn(c, dtype=dtype, seed=1), drawn(c, dtype=dtype, seed=2) + 3]
    if adaptive != "plain":  # halves of one tensor, as the networks have them
        norm += drawn(n if adaptive == "each" else 1, 2 * c, dtype=dtype, seed=3).chunk(2, 1)
    silu = adaptive != "shared"

    def fused(x, weight, emb, residual, *norm):
        prologue = prologue_of(x, norm, groups, silu)
        return kernels.forward(x, kernels.pack(weight), emb, residual, HALF, k // 2, prologue=prologue, plan=plan)

    def reference(x, weight, emb, residual, *norm):
        normed = group_norm_silu_reference(x, *norm[:2], groups, 1e-5, *norm[2:], silu=silu)
        return conv2d_reference(normed, weight, None, emb, residual, HALF)

    testing.check(fused, reference, ((x, weight, emb, residual, *norm), {}))


STATISTICS = {
    "parts_of_an_image": ((2, 5, 16, 8), 12, 3, Blocks(64, 16, 32, 4, 2)),
    "an_image_a_tile": ((2, 5, 8, 8), 12, 3, None),
    "images_of_a_tile": ((5, 5, 4, 4), 12, 3, None),
    "odd": ((2, 5, 7, 5), 12, 3, None),
    "split": ((3, 32, 4, 4), 36, 4, Blocks(64, 16, 32, 4, 2, 3)),
    "wide": ((3, 5, 4, 4), 264, 33, Blocks(64, 256, 64, 8, 2)),
}


def is_statistics_of(y, mean, rstd, groups, eps):
    parts = y.double().reshape(y.shape[0], groups, -1)
    exact = (parts.var(2, correction=0) + eps).rsqrt()
    # roundings of the mean, in standard deviations; where squares were summed, those would be squared
    bound = 4 * torch.finfo(torch.float32).eps * (1 + (parts.mean(2).abs() * exact).max())
    assert ((mean - parts.mean(2)) * exact).abs().max() <= bound
    assert (rstd / exact - 1).abs().max() <= bound


@single_and_half
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(name, dtype):
    """Of y as it was written, also far from zero, where a mean of squares would have lost the variance."""
    shape, out, groups, plan = STATISTICS[name]
    (x, weight, bias, _, residual), _ = inputs(shape, out, dtype=dtype)
    statistics = kernels.Statistics(groups, 1e-5)
    for offset in (0, 300):
        args = (x, kernels.pack(weight), bias[None] + offset, residual, HALF, 1)
        with testing.poisoned():
            y, found = kernels.forward(*args, statistics=statistics, plan=plan)
            again = kernels.forward(*args, statistics=statistics, plan=plan)
        assert torch.equal(y, kernels.forward(*args, plan=plan))
        assert all(torch.equal(a, b) for a, b in zip((y, found), again, strict=True))
        is_statistics_of(y, *found, groups, 1e-5)


UPSAMPLED = {
    "odd": ((2, 5, 7, 3), 6, None),
    "one_pixel": ((2, 3, 1, 1), 4, None),
    "even": ((2, 32, 4, 4), 20, Blocks(64, 16, 32, 4, 2)),
    "split": ((2, 32, 3, 4), 20, Blocks(64, 16, 16, 4, 2, 3)),
    "empty": ((0, 5, 7, 3), 6, None),
}


def box(like):
    return torch.full((2, 2), 0.25, dtype=like.dtype, device=like.device)


@single_and_half
@pytest.mark.parametrize("name", UPSAMPLED)
def test_upsample(name, dtype):
    (n, c, h, w), out, plan = UPSAMPLED[name]
    x, weight = drawn(n, c, h, w, dtype=dtype), drawn(out, c, 3, 3, dtype=dtype, seed=1) / math.sqrt(9 * c)
    rows, residual = drawn(n, out, dtype=dtype, seed=2), drawn(n, out, 2 * h, 2 * w, dtype=dtype, seed=3)

    def merged(x, weight, rows, residual):
        return kernels.upsample(x, kernels.pack_phases(weight), rows, residual, HALF, plan=plan)

    def reference(x, weight, rows, residual):
        return conv2d_reference(upfirdn_reference(x, box(x), up=2), weight, None, rows, residual, HALF)

    testing.check(merged, reference, ((x, weight, rows, residual), {}))


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_upsample_between_norms(size):
    x, weight = drawn(2, 32, *size), drawn(24, 32, 3, 3, seed=1) / 17
    norm = [drawn(32, seed=1), drawn(32, seed=2) + 3]
    prologue, statistics = prologue_of(x, norm, 8, True), kernels.Statistics(4, 1e-5)
    y, found = kernels.upsample(x, kernels.pack_phases(weight), prologue=prologue, statistics=statistics)
    exact = group_norm_silu_reference(*testing.widened([x, *norm]), 8)
    exact = conv2d_reference(upfirdn_reference(exact, box(exact), up=2), weight.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    is_statistics_of(y, *found, 4, 1e-5)


@single_and_half
def test_an_image_does_not_depend_on_its_batch(dtype):
    """Alone, at any place of a batch, beside anything, as long as the blocks are the same."""
    (x, weight, _, rows, residual), _ = inputs((7, 17, 3, 5), 6, emb=7, dtype=dtype)
    x[2] *= 1e4
    x[5] = math.nan
    for plan in (Blocks(64, 16, 32, 4, 2), Blocks(64, 16, 16, 4, 2, 3)):

        def convolve(i, plan=plan):
            return kernels.forward(x[i], kernels.pack(weight), rows[i], residual[i], HALF, 1, plan=plan)

        whole = convolve(slice(None))
        assert not whole[[0, 1, 2, 3, 4, 6]].isnan().any()
        for order in ([6], [6, 2, 3, 0, 1]):
            assert torch.equal(convolve(order), whole[order])


def test_what_is_not_finite_shows():
    """At the outputs that its pixel reaches, and in no other."""
    (x, weight, *_), _ = inputs((3, 33, 6, 5), 20)
    x[1, 20, 3, 2] = math.inf
    reached = conv2d_reference(x.double(), weight.double()).isfinite().logical_not()
    y = run(x, weight)
    assert reached.any() and not y[reached].isfinite().any() and y[~reached].isfinite().all()


@single_and_half
@pytest.mark.parametrize(
    "sizes", [(2, 16, 40, 8, 8, 3, 1), (3, 33, 70, 5, 6, 3, 0), (2, 64, 3, 5, 3, 3, 2), (5, 40, 9, 9, 7, 1, 0)]
)
def test_weight_gradient(sizes, dtype):
    n, c, o, h, w, k, padding = sizes
    grow = 2 * padding - k + 1
    dy, x = drawn(n, o, h + grow, w + grow, dtype=dtype), drawn(n, c, h, w, dtype=dtype, seed=1)

    def reference(dy, x):
        return torch.nn.grad.conv2d_weight(x, (o, c, k, k), dy, padding=padding)

    testing.check(lambda dy, x: kernels.weight_gradient(dy, x, k, padding), reference, ((dy, x), {}))


def test_packed_weights():
    weight = drawn(4, 5, 3, 3)
    assert torch.equal(kernels.pack(weight), weight.permute(0, 2, 3, 1))
    assert torch.equal(kernels.pack(weight, transposed=True)[1, 0, 2, 3], weight[3, 1, 2, 0])
    phases = kernels.pack_phases(weight, torch.float16)
    assert phases.shape == (4, 4, 2, 2, 5) and phases.is_contiguous() and phases.dtype == torch.float16
    assert torch.equal(phases[0, :, 0, 1], (weight[:, :, 0, 1] + weight[:, :, 0, 2]).half())
    assert torch.equal(phases[2, :, 1, 0], weight[:, :, 2, 0].half())
    assert all(torch.allclose(p.float().sum((1, 2)), weight.sum((2, 3)), atol=2e-2) for p in phases)


@pytest.mark.parametrize("allowed", [False, True])
def test_precision_follows_torch(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert kernels.precision(torch.float32) == ("tf32" if allowed else "ieee")
    assert kernels.precision(torch.float16) == "ieee"


def test_tf32(monkeypatch):
    """It has the digits of float16, cut off rather than rounded: twice its error at most, and twice for the order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    args, kwargs = inputs((2, 32, 6, 5), 20, scale=HALF)
    wide = testing.widened(args)
    both = all_gradients(conv2d_reference)
    exact, coarse = both(*wide, **kwargs), both(*(t.half().double() for t in args[:2]), *wide[2:], **kwargs)
    for got, want, near in zip(all_gradients(run)(*args, **kwargs)[:3], exact, coarse):
        bound = 4 * torch.finfo(torch.float16).eps * want.abs().max()
        assert (got - want).abs().max() <= max(4 * (near - want).abs().max(), bound)


def tiles(b, pixels, outputs):
    return -(-pixels // b.m) * -(-outputs // b.n)


@pytest.mark.parametrize("channels", [3, 32, 128, 192, 256, 384, 512, 576, 768, 960, 1152, 1344, 1536])
def test_blocks(channels):
    """Sums are cut for few pixels alone, steps are whole, and stages fit the 163 KB of an A100."""
    for pixels in (64, 256, 4096, 65536):
        for dtype, plain in (
            (torch.float8_e4m3fn, False),
            *((dtype, False) for dtype in DTYPES),
            (torch.float32, True),
        ):
            for area in (0, 63, 64, 1024):
                b = _conv2d_blocks.blocks(pixels, 256, channels, 9, dtype, plain, 1, area)
                factors = 0 if not area else 8 * b.k if area % b.m == 0 else 8 * b.m * b.k
                assert b.stages * ((b.m + b.n) * b.k * dtype.itemsize + factors) <= 163 * 1024
                assert channels == 3 or channels % b.k == 0
                assert b.splits == 1 or b.splits * tiles(b, pixels, 256) <= _conv2d_blocks.PROCESSORS
            w = _conv2d_blocks.weight_blocks(pixels, 256, channels, 9, dtype, plain)
            assert channels == 3 or channels % w.n == 0
            assert w.splits * 3 * w.k <= max(pixels, 3 * w.k)
    assert _conv2d_blocks.blocks(64, 256, channels, 9, torch.float16).splits > 1 or channels < 128
    assert _conv2d_blocks.blocks(65536, 256, 256, 9, torch.float16) == Blocks(128, 256, 64, 8, 3)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_opcheck(layout):
    (x, weight, bias, emb, residual), _ = inputs((2, 3, 4, 3), 4, layout=layout)
    forward, adjoint = torch.ops.edm_fast.conv2d_triton, torch.ops.edm_fast.conv2d_triton_adjoint
    torch.library.opcheck(forward.default, (x, weight, bias, emb, residual, 0.5, 1, None))
    plain = (x, weight, None, None, None, 1.0, 0, None)
    dy = forward(*plain)
    torch.library.opcheck(adjoint.default, (dy, *plain))
    torch.library.opcheck(torch.ops.edm_fast.conv2d_triton_weight_gradient.default, (dy, *plain))


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_compiles_without_a_graph_break(name):
    args, kwargs = inputs((2, 5, 4, 3), 6, scale=0.7)
    leaves = [t.clone().requires_grad_() for t in args]

    def loss(x, *rest):
        return conv2d(x * 2, *rest, **kwargs).square().sum()

    with backend.use_backend(name, "conv2d"):
        expected = torch.autograd.grad(loss(*leaves), leaves)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
        torch.testing.assert_close(torch.autograd.grad(compiled, leaves), expected)


def test_autocast():
    (x, weight, bias, _, residual), _ = inputs((2, 5, 4, 3), 6)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = run(x, weight, bias, None, residual)
    assert torch.equal(y, run(*(t.bfloat16() for t in (x, weight, bias)), None, residual.bfloat16()))
    assert y.dtype == torch.bfloat16


def test_choice_and_reasons():
    x, weight = drawn(1, 3, 4, 4), drawn(2, 3, 3, 3)
    automatic = op_checks.choose("conv2d", x, weight)
    assert automatic.backend == "triton" if DEVICE == "cuda" else "interpreter" in automatic.reasons["triton"]
    with backend.use_backend("triton", "conv2d"):
        assert op_checks.choose("conv2d", x, weight).backend == "triton"
        for args, kwargs, why in (
            ((x.double(), weight), {}, "float64"),
            ((x, drawn(2, 3, 5, 5)), {}, "5x5"),
            ((x, weight), {"padding": 3}, "padding"),
        ):
            with pytest.raises(BackendError, match=why):
                conv2d(*args, **kwargs)
