"""attention: the reference against its definition, derivatives, and every backend against the reference."""

import math

import pytest
import torch

from edm_fast import backend, native, testing
from edm_fast.errors import UserError
from edm_fast.ops import attention
from edm_fast.ops.attention.cpu import lower
from edm_fast.ops.attention.reference import AttentionArgs, attention_weights
from helpers import op_checks

reference = op_checks.forced("attention", "reference")
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
LAYOUTS = ("contiguous", "channels_last")


def defined(qkv, heads):
    """The op's docstring, one image, head and query pixel at a time."""
    n, channels, h, w = qkv.shape
    size = channels // (3 * heads)
    flat, out = qkv.reshape(n, channels, h * w), qkv.new_zeros(n, heads * size, h * w)
    for image in range(n):
        for head in range(heads):
            q, k, v = (flat[image, head * 3 * size + part : (head + 1) * 3 * size : 3] for part in range(3))
            for pixel in range(h * w):
                weights = torch.softmax(q[:, pixel] @ k / math.sqrt(size), dim=0)
                out[image, head * size : (head + 1) * size, pixel] = v @ weights
    return out.reshape(n, heads * size, h, w)


@pytest.mark.parametrize("case", op_checks.cases("attention", real=False))
def test_reference_is_the_definition(case):
    (qkv, heads), _ = case.inputs(torch.float64)
    torch.testing.assert_close(reference(qkv, heads), defined(qkv, heads))
    wide = reference(qkv.float(), heads)
    logits = max(1, qkv.abs().max().item() ** 2) if qkv.numel() else 1  # their rounding is relative
    torch.testing.assert_close(wide, defined(qkv, heads).float(), rtol=1e-5, atol=1e-6 * logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_does_not_overflow(dtype):
    qkv = (torch.randn(1, 3 * 64, 4, 4) * 30).to(dtype)  # products far beyond the range of float16
    y = attention(qkv, 1)
    assert y.dtype == dtype and y.isfinite().all()
    torch.testing.assert_close(y.double(), defined(qkv.double(), 1), rtol=0.05, atol=1.0)


def test_autocast_keeps_the_wide_product():
    qkv = (torch.randn(2, 3 * 64, 8, 8) * 3).bfloat16()
    q, k = qkv[:, 0::3].flatten(2), qkv[:, 1::3].flatten(2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_weights(q, k)
    assert torch.equal(inside, attention_weights(q, k))


def test_the_result_has_the_dtype_of_autocast():
    qkv = torch.randn(1, 48, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(qkv).dtype == reference(qkv).dtype == torch.bfloat16


@pytest.mark.parametrize("pixels", [9, 64, 256])
def test_backward_of_the_weights_has_the_bits_of_torchs_softmax(pixels):
    """The published code takes softmax's own backward; another sum over the keys is 1e-6 of a network's gradient."""
    q, k = (torch.randn(2, 8, pixels, requires_grad=True) for _ in range(2))
    dw = torch.randn(2, pixels, pixels)
    w = attention_weights(q, k)
    dq, dk = torch.autograd.grad(w, (q, k), dw)
    logits = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(8)).detach().requires_grad_()
    assert torch.equal(logits.softmax(2), w)
    (db,) = torch.autograd.grad(logits.softmax(2), logits, dw)
    assert torch.equal(dq, torch.einsum("nck,nqk->ncq", k, db) / math.sqrt(8))
    assert torch.equal(dk, torch.einsum("ncq,nqk->nck", q, db) / math.sqrt(8))


def test_equal_keys_average_the_values():
    qkv = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    qkv[:, 1] = 0.3  # one key everywhere
    torch.testing.assert_close(attention(qkv, 1), qkv[:, 2:].mean(dim=(2, 3), keepdim=True).expand(1, 1, 2, 2))


def test_derivatives():
    qkv = torch.randn(2, 3 * 2 * 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, 2), qkv)
    assert torch.autograd.gradgradcheck(lambda x: attention(x, 2), qkv)


def with_gradients(function):
    """Of the same arguments: y, the gradient of a fixed weighted sum of it, and the gradients of a sum of that."""

    def run(qkv, heads):
        x = qkv.detach().requires_grad_()
        with torch.enable_grad():
            y = function(x, heads)
            weights = torch.cos(torch.arange(y.numel())).reshape(y.shape).to(y).requires_grad_()
            (dx,) = torch.autograd.grad(y, x, weights, create_graph=True)
            second = torch.sin(torch.arange(dx.numel())).reshape(dx.shape).to(dx)
            return y.detach(), dx.detach(), *torch.autograd.grad(dx, (x, weights), second)

    return run


def on_cpu(*args):
    return op_checks.forced("attention", "cpu")(*args)


def drawn(n, heads, size, h, w, layout="contiguous", scale=1.0):
    torch.manual_seed(0)
    return testing.laid_out(torch.randn(n, 3 * heads * size, h, w) * scale, layout)


# (n, heads, head size, h, w): around the sizes of vectors, panels, blocks of queries and steps of keys
SHAPES = [(2, 3, 5, 3, 7), (1, 1, 33, 5, 13), (2, 1, 16, 4, 8), (1, 2, 48, 9, 29), (1, 1, 129, 8, 8), (1, 2, 3, 19, 27)]


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", native.ISAS)
def test_derivatives_on_every_instruction_set(isa, shape, layout):
    if native.ISAS.index(isa) > native.lib.BEST_ISA:
        pytest.skip(f"no {isa} here")
    with native.use_isa(isa):
        testing.check(with_gradients(on_cpu), with_gradients(reference), ((drawn(*shape, layout), shape[1]), {}))


@needs_native
@pytest.mark.parametrize("isa", native.ISAS)
def test_weights_within_a_few_ulp_and_right_at_the_ends(isa):
    """Two keys, 0 and -x, with the values 0 and 1: the result is 1 / (1 + e^x). Each x is a head."""
    if native.ISAS.index(isa) > native.lib.BEST_ISA:
        pytest.skip(f"no {isa} here")
    x = torch.cat([torch.tensor([0.0, 80, 87, 87.3, 88, 89, 104, 1e4, 1e30, 3e38]), torch.linspace(0, 60, 9001)])
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    qkv = torch.stack([one, zero, zero, one, -x, one], dim=1).reshape(-1, 2, 3).transpose(1, 2)  # (heads, q k v, pixel)
    with native.use_isa(isa):
        y = on_cpu(qkv.reshape(1, -1, 1, 2).contiguous(), len(x))[0]
    expected = torch.sigmoid(-x.double())[:, None, None]
    floor = 1.2 * torch.finfo(torch.float32).tiny  # below the normal numbers weights are 0
    assert ((y - expected).abs() <= 3 * torch.finfo(torch.float32).eps * expected + floor).all()


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_a_number_stays_in_its_head_and_query(layout):
    qkv = drawn(3, 2, 5, 18, 17, layout)
    qkv[0, 3, 4, 4] = float("nan")  # q of head 0
    qkv[1, 15 + 4, 17, 16] = float("nan")  # k of head 1
    qkv[2, 5, 0, 0] = float("nan")  # channel 1 of v of head 0
    bad = on_cpu(qkv, 2).isnan()
    assert torch.equal(bad, reference(qkv, 2).isnan())
    assert bad[0, :5, 4, 4].all() and bad[1, 5:].all() and bad[2, 1].all() and bad.sum() == 5 + 5 * 306 + 306


@needs_native
@pytest.mark.parametrize("counted", [slice(0, 3), slice(286, 289), slice(100, 270)])
def test_keys_of_minus_infinity_do_not_count(counted):
    """Also if none of the first step of keys counts, or none of the last."""
    qkv = drawn(2, 1, 4, 17, 17)
    flat = qkv.flatten(2)
    flat[:, 0] = 1
    flat[:, 1] = -torch.inf
    flat[:, 1, counted] = torch.randn(2, flat[0, 1, counted].numel())
    expected = reference(qkv.double())
    assert expected.isfinite().all()
    torch.testing.assert_close(on_cpu(qkv), expected.float())
    flat[:, 1] = -torch.inf
    assert on_cpu(qkv).isnan().all() and reference(qkv).isnan().all()


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_and_batches_do_not_change_a_bit(shape, layout):
    (n, heads, *_), qkv, threads = shape, drawn(*shape, layout), torch.get_num_threads()
    run, results = with_gradients(on_cpu), {}
    try:
        for isa in filter(native.available, native.ISAS):
            with native.use_isa(isa):
                alone = [
                    torch.cat(parts) for parts in zip(*(on_cpu_and_gradient(qkv[i : i + 1], heads) for i in range(n)))
                ]
                for count in (1, 2, 3, 5, 8):
                    torch.set_num_threads(count)
                    wide = testing.laid_out(torch.cat([qkv.flip(0), -qkv, qkv]), layout)
                    assert all(torch.equal(a[2 * n :], b) for a, b in zip(on_cpu_and_gradient(wide, heads), alone))
                    results[isa, count] = run(qkv, heads)[:2]
    finally:
        torch.set_num_threads(threads)
    for (isa, _), result in results.items():
        same = results["portable" if isa == "portable" else "avx2", 1]  # fused multiply-adds on both
        assert all(torch.equal(a, b) for a, b in zip(result, same))


def on_cpu_and_gradient(qkv, heads):
    """Both with a weight for each output that does not depend on the place in the batch."""
    x = qkv.detach().requires_grad_()
    y = on_cpu(x, heads)
    weights = torch.cos(torch.arange(y[0].numel())).reshape(y[0].shape).to(y)
    return y.detach(), *torch.autograd.grad(y, x, weights.expand_as(y))


def apart(t, heads):
    """(N, HW, channels) with q, k, v one after the other, from (N, channels, H, W) with the three interleaved."""
    n, channels, h, w = t.shape
    return t.reshape(n, heads, channels // (3 * heads), 3, h * w).permute(0, 4, 3, 1, 2).reshape(n, h * w, channels)


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_do_not_change_a_bit(shape):
    """Also q, k, v apart in channels-last memory, as an inference plan has them."""
    n, heads, c, hw = *shape[:3], shape[3] * shape[4]
    qkv = drawn(*shape)
    y, dqkv = on_cpu_and_gradient(qkv, heads)
    for got, expected in zip(on_cpu_and_gradient(testing.laid_out(qkv, "channels_last"), heads), (y, dqkv)):
        assert torch.equal(got, expected)
    flat = apart(qkv, heads)
    a, stats, back = (
        torch.full((n, hw, heads * c), torch.nan),
        torch.empty(2, n, heads * hw),
        torch.full_like(flat, torch.nan),
    )
    sizes = dict(n=n, heads=heads, channels=c, pixels=hw)
    sizes |= dict(qkv_image=hw * 3 * heads * c, qkv_head=c, qkv_which=heads * c, qkv_channel=1, qkv_pixel=3 * heads * c)
    sizes |= dict(a_image=hw * heads * c, a_head=c, a_channel=1, a_pixel=heads * c)
    native.call("attention_fwd_cpu", qkv=flat, a=a, stats=stats, **sizes)
    assert torch.equal(a, y.flatten(2).transpose(1, 2))
    da = torch.cos(torch.arange(y[0].numel())).reshape(y[0].shape).to(y).expand_as(y).flatten(2).transpose(1, 2)
    native.call("attention_bwd_cpu", qkv=flat, a=a, stats=stats, da=da.contiguous(), dqkv=back, **sizes)
    assert torch.equal(back, apart(dqkv, heads))


@needs_native
def test_opcheck():
    forward, backward = torch.ops.edm_fast.attention_cpu, torch.ops.edm_fast.attention_cpu_backward
    for layout in testing.LAYOUTS:
        for shape in ((2, 2, 5, 3, 4), (1, 3, 4, 1, 1), (0, 1, 2, 3, 3)):
            qkv = drawn(*shape, layout)
            torch.library.opcheck(forward.default, (qkv, shape[1]))
            a, stats = forward(qkv, shape[1])
            torch.library.opcheck(backward.default, (torch.ones_like(a), a, stats, qkv, shape[1]))


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_without_a_graph_break(layout):
    x = drawn(2, 2, 5, 3, 4, layout).requires_grad_()

    def loss(x):
        return attention(x * 2, 2).square().sum()

    with backend.use_backend("cpu"):
        (expected,) = torch.autograd.grad(loss(x), x)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, loss(x))
    torch.testing.assert_close(torch.autograd.grad(compiled, x)[0], expected)


@needs_native
def test_reasons_and_layout():
    qkv = drawn(2, 2, 5, 3, 4)
    assert op_checks.choose("attention", qkv, 2).backend == "cpu"
    for dtype in (torch.float64, torch.bfloat16):
        assert str(dtype) in op_checks.choose("attention", qkv.to(dtype), 2).reasons["cpu"]
    for layout in LAYOUTS:
        memory = getattr(torch, layout if layout == "channels_last" else "contiguous_format")
        x = testing.laid_out(qkv, layout).requires_grad_()
        y = on_cpu(x, 2)
        (dx,) = torch.autograd.grad(y.sum(), x)  # dy is expanded, not dense
        assert y.is_contiguous(memory_format=memory) and dx.is_contiguous(memory_format=memory)
        assert on_cpu(x.detach(), 2).is_contiguous(memory_format=memory)


@needs_native
def test_training_keeps_no_weights():
    """qkv, the result, and two numbers for each query; the reference also keeps HW x HW weights."""
    qkv, kept = drawn(1, 1, 4, 32, 32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        on_cpu(qkv.requires_grad_())
    assert sum(kept) == (12 + 4 + 2) * 32 * 32


@needs_native
def test_native_refuses():
    qkv, a, stats = drawn(1, 1, 4, 2, 2), torch.empty(1, 4, 2, 2), torch.empty(2, 1, 4)
    strides = dict(qkv_image=48, qkv_head=12, qkv_which=4, qkv_channel=12, qkv_pixel=1)
    strides |= dict(a_image=16, a_head=16, a_channel=4, a_pixel=1)
    good = dict(n=1, heads=1, channels=4, pixels=4, **strides)
    for wrong in ({"heads": 0}, {"channels": 0}, {"n": -1}):
        with pytest.raises(RuntimeError, match="bad argument"):
            native.call("attention_fwd_cpu", qkv=qkv, a=a, stats=stats, **{**good, **wrong})
    with pytest.raises(TypeError, match="stats"):
        native.call("attention_bwd_cpu", qkv=qkv, a=a, stats=None, da=a, dqkv=qkv, **good)
    with pytest.raises(RuntimeError, match="element type"):
        native.call("attention_fwd_cpu", qkv=qkv.double(), a=a.double(), **good)


@pytest.mark.parametrize("channels, heads", [(10, 1), (12, 3), (12, 0), (0, 1)])
def test_bad_input(channels, heads):
    with pytest.raises(UserError, match="heads"):
        attention(torch.zeros(1, channels, 2, 2), heads)
    with pytest.raises(UserError, match="4 dimensions"):
        attention(torch.zeros(1, 3, 2), 1)


@needs_native
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_call_of_plans(heads, separate):
    """Bound to images that lie channels last in wider ones; `separate`: channels in the order which, head, channel."""
    generator = torch.Generator().manual_seed(0)
    rows, size = 3 * heads * 5, (2, 3, 4)  # rows of qkv; (N, H, W)
    qkv = torch.randn(*size, rows + 7, generator=generator).permute(0, 3, 1, 2)[:, :rows]
    a = torch.full((*size, heads * 5 + 2), math.nan).permute(0, 3, 1, 2)[:, : heads * 5]
    lower(a, AttentionArgs(qkv, heads), None, separate)(1)
    if separate:
        qkv = qkv.unflatten(1, (3, heads, 5)).permute(0, 2, 3, 1, 4, 5).flatten(1, 3)
    torch.testing.assert_close(a, reference(qkv, heads))
