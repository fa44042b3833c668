"""group_norm_silu on Triton: every gradient and layout against the reference, statistics, determinism.

Without a GPU the kernels run in Triton's interpreter.
"""

import pytest
import torch

from edm_fast import testing
from helpers import op_checks

reference = op_checks.forced("group_norm_silu", "reference")
kernels = pytest.importorskip("edm_fast.kernels.group_norm_silu")
DEVICE = op_checks.BACKENDS["triton"]
on_triton = op_checks.forced("group_norm_silu", "triton")
# shape, groups, channels last, rows of scale and shift: one pass, two passes (groups that are no power of two), several
# chunks of pixels, odd sizes, single pixels, vectors
CASES = {
    "one pass": ((2, 64, 5, 7), 16, True, None),
    "one pass, rows": ((3, 32, 8, 8), 8, True, 3),
    "one pass, contiguous": ((2, 16, 3, 5), 4, False, 1),
    "two passes": ((2, 48, 7, 9), 8, True, None),
    "two passes, row": ((2, 36, 5, 5), 12, True, 1),
    "two passes, contiguous": ((2, 12, 17, 9), 4, False, 2),
    "chunks": ((1, 24, 33, 31), 8, True, None),
    "wide groups": ((2, 320, 3, 3), 2, True, None),
    "one group": ((2, 6, 4, 4), 1, True, 2),
    "single pixels": ((3, 24, 1, 1), 8, True, None),
    "vectors": ((3, 20), 5, False, None),
    "five dimensions": ((2, 12, 2, 3, 4), 3, False, None),
}


def inputs(shape, groups, last, rows, dtype=torch.float32, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, shift=0.0):
        return (torch.randn(*size, generator=generator) + shift).to(dtype).to(DEVICE)

    x = draw(*shape, shift=2.0)
    x = x.to(memory_format=torch.channels_last) if last else x
    if rows is not None:
        kwargs |= {"scale": draw(rows, shape[1]), "shift": draw(rows, shape[1])}
    return (x, draw(shape[1], shift=1.0), draw(shape[1]), groups), kwargs


def all_gradients(function):
    """y, then the gradients of a weighted sum of it with respect to every tensor."""

    def run(*args, **kwargs):
        leaves = [t.detach().requires_grad_() for t in (*args[:3], *kwargs.values()) if torch.is_tensor(t)]
        names = [name for name, value in kwargs.items() if torch.is_tensor(value)]
        with torch.enable_grad():
            y = function(*leaves[:3], *args[3:], **{**kwargs, **dict(zip(names, leaves[3:]))})
            weights = torch.cos(torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y)
            return y.detach(), *torch.autograd.grad(y, leaves, weights)

    return run


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients_in_float32(name, silu):
    call = inputs(*CASES[name], silu=silu)
    testing.check(all_gradients(on_triton), all_gradients(reference), call)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["one pass, rows", "two passes", "two passes, contiguous"])
def test_half_precision(name, dtype):
    call = inputs(*CASES[name], dtype=dtype)
    testing.check(all_gradients(on_triton), all_gradients(reference), call)


def test_weights_of_another_dtype():
    (x, weight, bias, groups), kwargs = inputs(*CASES["two passes"], dtype=torch.float16)
    weight, bias = weight.float() + 1e-4, bias.float()
    x.requires_grad_(), weight.requires_grad_()
    y = on_triton(x, weight, bias, groups)
    assert y.dtype == torch.float16
    dx, dweight = torch.autograd.grad(y.float().square().sum(), (x, weight))
    assert dx.dtype == torch.float16 and dweight.dtype == torch.float32
    want = reference(x.detach().double(), weight.double(), bias.double(), groups)
    assert (y.double() - want).abs().max() < 4e-3


def test_mean_far_from_zero():
    (x, *rest), _ = inputs((1, 24, 33, 31), 8, True, None)
    testing.check(on_triton, reference, ((x + 1000, *rest), {}))


@pytest.mark.parametrize("name", ["one pass", "two passes", "chunks"])
def test_images_do_not_depend_on_their_batch(name):
    shape, groups, last, _ = CASES[name]
    (x, *rest), kwargs = inputs((3, *shape[1:]), groups, last, 1)
    whole = on_triton(x, *rest, **kwargs)
    assert all(torch.equal(whole[i : i + 1], on_triton(x[i : i + 1], *rest, **kwargs)) for i in range(3))


@pytest.mark.parametrize("name", ["one pass", "two passes", "chunks", "two passes, contiguous"])
def test_statistics_may_come_from_the_producer(name):
    shape, groups, last, rows = CASES[name]
    (x, weight, bias, _), kwargs = inputs(shape, groups, last, rows)
    stats = kernels.moments(x, groups, 1e-5, last)
    of_groups = x.double().reshape(shape[0], groups, -1)
    torch.testing.assert_close(stats[0].double(), of_groups.mean(-1), rtol=1e-6, atol=1e-6)
    variance = of_groups.var(-1, correction=0)
    torch.testing.assert_close(stats[1].double(), (variance + 1e-5).rsqrt(), rtol=1e-6, atol=0)
    parameters = (weight, bias, kwargs.get("scale"), kwargs.get("shift"))
    y = kernels.apply(x, stats, parameters, groups, True, last)
    torch.testing.assert_close(y, on_triton(x, weight, bias, groups, **kwargs), rtol=1e-5, atol=1e-6)


def test_not_a_number_stays_in_its_group():
    (x, *rest), _ = inputs((2, 8, 8, 10), 4, True, None)
    x[0, 2, 1, 1] = float("nan")
    x[1, 7, 7, 9] = float("inf")
    for y in all_gradients(on_triton)(x, *rest)[:2]:
        bad = y.isnan()
        assert bad[0, 2:4].all() and bad[1, 6:].all() and bad.sum() == 2 * 2 * 80


def test_large_and_small_values_of_silu():
    m = torch.tensor([-200.0, -90, -20, -1e-3, 0, 1e-3, 20, 90, 200], device=DEVICE)
    y = on_triton(torch.stack([-m, m]).reshape(1, 2, 1, 9), m.new_ones(2), m.new_zeros(2), 2, eps=1e6)
    assert y.isfinite().all()
    (dx,) = torch.autograd.grad(
        on_triton(x := m.reshape(1, 1, 1, 9).requires_grad_(), m.new_ones(1) * 100, m.new_zeros(1), 1).sum(), x
    )
    assert dx.isfinite().all()


def test_strided_inputs():
    (x, *rest), _ = inputs((2, 16, 6, 8), 4, False, None)
    view = torch.stack([x, -x], -1)[..., 0]
    assert not view.is_contiguous()
    assert torch.equal(on_triton(view, *rest), on_triton(x, *rest))


def test_empty():
    (x, *rest), _ = inputs((0, 8, 3, 3), 4, True, None)
    y, dx, *_ = all_gradients(on_triton)(x, *rest)
    assert y.shape == dx.shape == (0, 8, 3, 3)


def test_second_derivative():
    (x, weight, bias, groups), kwargs = inputs((2, 8, 2, 3), 4, True, 2)
    x.requires_grad_()

    def second(function):
        (dx,) = torch.autograd.grad(function(x, weight, bias, groups, **kwargs).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    torch.testing.assert_close(second(on_triton), second(reference), rtol=1e-4, atol=1e-4)


def test_opcheck():
    forward, backward = torch.ops.edm_fast.group_norm_silu_triton, torch.ops.edm_fast.group_norm_silu_triton_backward
    for last in (True, False):
        for rows in (None, 2):
            (x, weight, bias, groups), kwargs = inputs((2, 4, 3, 5), 2, last, rows, dtype=torch.float16)
            args = (x, weight, bias, groups, 1e-5, kwargs.get("scale"), kwargs.get("shift"), True)
            torch.library.opcheck(forward.default, args)
            torch.library.opcheck(backward.default, (torch.ones_like(x), forward(*args)[1], *args))


def test_reasons():
    (x, weight, bias, groups), _ = inputs(*CASES["one pass"])
    choice = op_checks.choose("group_norm_silu", x, weight, bias, groups)
    if DEVICE == "cuda":
        assert choice.backend == "triton"
    else:
        assert choice.backend != "triton" and "interpreter" in choice.reasons["triton"]
    wide = op_checks.choose("group_norm_silu", x.double(), weight.double(), bias.double(), groups)
    assert "float64" in wide.reasons["triton"]


def test_tiles_hold_what_is_there():
    for channels in (1, 3, 128, 192, 256, 384, 576, 768, 960, 1152, 1344, 1536):
        for space in (1, 16, 64, 256, 1024, 4096, 16384):
            for last in (True, False):
                block_p, block_c = kernels.tile(space, channels, last)
                assert block_p * block_c <= kernels.TILE and block_p & (block_p - 1) == block_c & (block_c - 1) == 0
            blocks = kernels.one_pass(space, channels, 1, 2, True)
            assert blocks is None or blocks[0] >= space
