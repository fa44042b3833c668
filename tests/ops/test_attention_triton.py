"""attention on Triton: result and gradient against the reference, any head size, layouts, determinism.

Without a GPU the kernels run in Triton's interpreter.
"""

import pytest
import torch

from edm_fast import testing
from edm_fast.errors import UserError
from helpers import op_checks

reference = op_checks.forced("attention", "reference")
kernels = pytest.importorskip("edm_fast.kernels.attention")
DEVICE = op_checks.BACKENDS["triton"]
on_triton = op_checks.forced("attention", "triton")
# n, heads, head size, h, w: sizes that are no powers of two, several blocks of queries and keys, a single pixel
SHAPES = {
    "small": (2, 3, 5, 3, 7),
    "blocks": (1, 1, 16, 7, 11),
    "wide": (1, 1, 61, 5, 7),
    "one pixel": (2, 2, 24, 1, 1),
}
LAYOUTS = ("contiguous", "channels_last")


def drawn(n, heads, size, h, w, layout="contiguous", dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    qkv = (torch.randn(n, 3 * heads * size, h, w, generator=generator) * scale).to(dtype).to(DEVICE)
    return testing.laid_out(qkv, layout), heads


def with_gradient(function):
    def run(qkv, heads):
        x = qkv.detach().requires_grad_()
        with torch.enable_grad():
            y = function(x, heads)
            weights = torch.cos(torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y)
            return y.detach(), *torch.autograd.grad(y, x, weights)

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_gradient_in_float32(name, layout):
    testing.check(with_gradient(on_triton), with_gradient(reference), (drawn(*SHAPES[name], layout), {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["small", "blocks", "wide"])
def test_half_precision(name, dtype):
    call = (drawn(*SHAPES[name], "channels_last", dtype), {})
    testing.check(with_gradient(on_triton), with_gradient(reference), call)


def test_largest_head():
    testing.check(on_triton, reference, (drawn(1, 1, 256, 4, 4, "channels_last", torch.float16), {}))
    choice = op_checks.choose("attention", *drawn(1, 1, 257, 2, 2))
    assert "up to 256 channels" in choice.reasons["triton"]
    qkv, heads = drawn(1, 1, 129, 2, 2)
    assert "up to 128 channels" in op_checks.choose("attention", qkv.requires_grad_(), heads).reasons["triton"]
    with pytest.raises(UserError, match="up to 256"):
        on_triton(*drawn(1, 1, 257, 2, 2))


def test_large_logits():
    """The backward takes the logits anew, in another order: where they are thousands, so does their rounding grow."""
    qkv, heads = drawn(1, 1, 16, 4, 5, scale=30.0)
    testing.check(on_triton, reference, ((qkv, heads), {}))
    testing.check(with_gradient(on_triton), with_gradient(reference), ((qkv / 5, heads), {}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_apart(layout):
    """Channels in the order which, head, channel, as a plan has its convolution write them."""
    (qkv, heads), size = drawn(2, 3, 8, 3, 5, layout), 8
    n, channels, h, w = qkv.shape
    apart = qkv.reshape(n, heads, size, 3, h, w).permute(0, 3, 1, 2, 4, 5).reshape(n, channels, h, w)
    a, _ = kernels.forward(testing.laid_out(apart, layout), heads, apart=True)
    assert torch.equal(a, on_triton(qkv, heads))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_batch_and_strides(layout):
    qkv, heads = drawn(3, 2, 16, 3, 5, layout)
    a = on_triton(qkv, heads)
    assert testing.laid_out(a, layout).stride() == a.stride()
    assert all(torch.equal(a[i : i + 1], on_triton(qkv[i : i + 1], heads)) for i in range(3))
    view = torch.stack([qkv, qkv], -1)[..., 0]
    torch.testing.assert_close(on_triton(view, heads), a)
    assert on_triton(qkv[:0], heads).shape == (0, 32, 3, 5)


def test_not_a_number_stays_in_its_head():
    qkv, heads = drawn(2, 2, 8, 3, 5)
    qkv[0, 0, 1, 1] = float("nan")  # a query of head 0
    a = on_triton(qkv, heads)
    assert a[0, :8, 1, 1].isnan().all() and a.isnan().sum() == 8


def test_second_derivative():
    qkv, heads = drawn(1, 2, 4, 2, 3)
    qkv.requires_grad_()

    def second(function):
        (dx,) = torch.autograd.grad(function(qkv, heads).square().sum(), qkv, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), qkv)[0]

    torch.testing.assert_close(second(on_triton), second(reference), rtol=1e-4, atol=1e-4)


def test_opcheck():
    forward, backward = torch.ops.edm_fast.attention_triton, torch.ops.edm_fast.attention_triton_backward
    for layout in LAYOUTS:
        qkv, heads = drawn(2, 2, 8, 3, 5, layout, torch.float16)
        torch.library.opcheck(forward.default, (qkv, heads))
        a, stats = forward(qkv, heads)
        torch.library.opcheck(backward.default, (torch.ones_like(a), a, stats, qkv, heads))
