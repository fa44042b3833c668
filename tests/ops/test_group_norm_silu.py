"""group_norm_silu: the reference against its definition, derivatives, and every backend against the reference."""

import functools

import pytest
import torch

from edm_fast import backend, native, testing
from edm_fast.errors import UserError
from edm_fast.ops import group_norm_silu
from helpers import op_checks

reference = op_checks.forced("group_norm_silu", "reference")
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
LAYOUTS = ("contiguous", "channels_last")


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
    torch.testing.assert_close(reference(*args, **kwargs), defined(*args, **kwargs))


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


all_gradients = functools.partial(op_checks.gradients, "group_norm_silu")


def on_cpu(*args, **kwargs):
    return op_checks.forced("group_norm_silu", "cpu")(*args, **kwargs)


def case_inputs(shape, groups, layout="contiguous", rows=None, dtype=torch.float32, **kwargs):
    """Arguments for one call; `rows` is the number of rows of scale and shift."""
    torch.manual_seed(0)
    x = testing.laid_out(torch.randn(shape, dtype=dtype), layout)
    c = shape[1]
    if rows is not None:
        kwargs = {"scale": torch.randn(rows, c, dtype=dtype), "shift": torch.randn(rows, c, dtype=dtype), **kwargs}
    return (x, torch.randn(c, dtype=dtype), torch.randn(c, dtype=dtype), groups), kwargs


EXTRA = {
    "adaptive_1_row": case_inputs((3, 12, 5, 7), 4, rows=1),
    "adaptive_1_row_last": case_inputs((3, 12, 5, 7), 4, "channels_last", rows=1),
    "adaptive_1_image": case_inputs((1, 12, 5, 7), 4, rows=1, silu=False),
    "demo_32_32": case_inputs((4, 32, 32, 32), 8),
    "adm_192_64": case_inputs((1, 192, 64, 64), 32, rows=1),
    "adm_192_64_last": case_inputs((1, 192, 64, 64), 32, "channels_last", rows=1),
    "one_channel_per_group": case_inputs((2, 33, 9, 9), 33, eps=1e-6),
    "one_group": case_inputs((2, 33, 9, 9), 1, "channels_last"),
    "three_dimensions": case_inputs((2, 6, 3, 5, 4), 3),
    "one_dimension": case_inputs((2, 6, 131), 3, silu=False),
}


def test_one_scale_serves_every_image():
    """Its gradient is the sum over the images."""
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    pair = [torch.randn(1, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda scale, shift: group_norm_silu(x, torch.ones(4), torch.zeros(4), 2, scale=scale, shift=shift), pair
    )


@needs_native
@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("isa", native.ISAS)
def test_more_shapes_on_every_instruction_set(name, isa):
    if native.ISAS.index(isa) > native.lib.BEST_ISA:
        pytest.skip(f"no {isa} here")
    with native.use_isa(isa):
        testing.check(all_gradients(on_cpu), all_gradients(reference), EXTRA[name])


@needs_native
@pytest.mark.parametrize("case", op_checks.cases("group_norm_silu"))
def test_float64(case):
    args, kwargs = case.inputs(torch.float64)
    with testing.poisoned():
        results = all_gradients(on_cpu)(*args, **kwargs)
    for got, expected in zip(results, all_gradients(reference)(*args, **kwargs)):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [0, 1e3, -1e5])
@pytest.mark.parametrize("deviation", [1, 1e-3, 1e-10])
def test_large_means_and_tiny_variances(layout, mean, deviation):
    """Sums of squares would cancel; the shifted ones do not, and the budget of a plain two-pass formula holds."""
    silu = deviation > 1e-9  # or every pixel of a channel has the same slope, with the same rounding error
    (x, *rest), kwargs = case_inputs((2, 8, 32, 40), 2, layout, rows=2, eps=1e-6, silu=silu)
    testing.check(all_gradients(on_cpu), all_gradients(reference), ((x * deviation + mean, *rest), kwargs))


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_exact_to_a_few_roundings(layout):
    """Also with an outlier in front, with channels of unlike means, and with a drift."""
    x = torch.randn(2, 8, 64, 40)
    x[:, 1::2] += 300
    x += torch.linspace(0, 1000, 64)[:, None]
    x[:, 0, 0, 0] = 1e6
    x = testing.laid_out(x, layout)
    stats = torch.ops.edm_fast.group_norm_silu_cpu(x, torch.ones(8), torch.zeros(8), 2, 1e-5, None, None, True)[1]
    groups = x.contiguous().double().reshape(2, 2, -1)
    torch.testing.assert_close(stats[:2].double().sum(0), groups.mean(dim=2), rtol=1e-7, atol=0)
    torch.testing.assert_close(stats[2].double(), (groups.var(dim=2, correction=0) + 1e-5).rsqrt(), rtol=1e-6, atol=0)


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", native.ISAS)
def test_silu_within_two_ulp_and_right_at_the_ends(dtype, isa, layout):
    """Two values per group normalise to -1 and 1; the weight makes m anything."""
    if native.ISAS.index(isa) > native.lib.BEST_ISA:
        pytest.skip(f"no {isa} here")
    ends = torch.tensor([0.0, 80, 87.3, 88, 89, 104, 708, 709.5, 746, 1e4, 1e30, 3e38], dtype=dtype)
    m = torch.cat([ends, torch.linspace(0, 30, 9001, dtype=dtype)])
    x = testing.laid_out(torch.tensor([-1.0, 1], dtype=dtype).expand(1, len(m), 2)[..., None], layout)
    with native.use_isa(isa):
        y = on_cpu(x, m, torch.zeros_like(m), len(m), eps=0.0)[0, ..., 0]
    wide = torch.stack([-m, m], dim=1).double()
    expected = wide * torch.sigmoid(wide) if dtype == torch.float32 else torch.nn.functional.silu(wide)
    # e^-|m| below the normal numbers is 0
    floor = m.abs()[:, None] * torch.finfo(dtype).tiny
    assert ((y - expected).abs() <= 4 * torch.finfo(dtype).eps * expected.abs() + floor.clamp(max=1e-35)).all()


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_a_number_stays_in_its_group(layout):
    (x, *rest), _ = case_inputs((2, 8, 8, 10), 4, layout)
    x[0, 2, 1, 1] = float("nan")
    x[1, 7, 7, 9] = float("inf")
    for y in all_gradients(on_cpu)(x, *rest)[:2]:
        bad = y.isnan()
        assert bad[0, 2:4].all() and bad[1, 6:].all() and bad.sum() == 2 * 2 * 80


@needs_native
@pytest.mark.parametrize("name", EXTRA)
def test_instruction_sets_and_threads_agree(name):
    """To the bit; but y channels last has fused multiply-adds where the instruction set has them, and a quotient of its
    own in 16 lanes."""
    args, kwargs = EXTRA[name]
    outputs, gradients, threads = {}, [], torch.get_num_threads()
    try:
        for isa in filter(native.available, native.ISAS):
            for count in (1, 2, 3, 5, 8):
                torch.set_num_threads(count)
                with native.use_isa(isa):
                    y, *rest = all_gradients(on_cpu)(*args, **kwargs)
                outputs.setdefault(isa, []).append([y])
                gradients.append(rest)
    finally:
        torch.set_num_threads(threads)
    if args[0].is_contiguous():
        outputs = {"any": sum(outputs.values(), [])}
    elif not kwargs.get("silu", True):
        outputs = {"portable": outputs.pop("portable"), "others": sum(outputs.values(), [])}
    elif "avx512vnni" in outputs:
        outputs["avx512"] += outputs.pop("avx512vnni")
    for first, *others in (*outputs.values(), gradients):
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@needs_native
def test_images_do_not_depend_on_their_batch():
    for layout in LAYOUTS:
        (x, *rest), kwargs = case_inputs((5, 64, 9, 8), 16, layout, rows=1)
        whole = on_cpu(x, *rest, **kwargs)
        assert all(torch.equal(whole[i : i + 1], on_cpu(x[i : i + 1], *rest, **kwargs)) for i in range(5))


@needs_native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows, silu", [(None, True), (1, True), (2, False), (2, True)])
def test_derivatives_of_the_kernel(layout, rows, silu):
    args, kwargs = case_inputs((2, 4, 2, 3), 2, layout, rows, torch.float64, silu=silu)
    tensors = [t.requires_grad_() for t in (*args[:3], *kwargs.values()) if torch.is_tensor(t)]

    def function(x, weight, bias, scale=None, shift=None):
        return on_cpu(x, weight, bias, 2, scale=scale, shift=shift, silu=silu)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@needs_native
def test_second_derivative_with_a_scale_made_from_x():
    (x, weight, bias, groups), _ = case_inputs((2, 4, 2, 3), 2, dtype=torch.float64)

    def function(x):
        return on_cpu(x, weight, bias, groups, scale=x.mean(dim=(2, 3)), shift=x.amax(dim=(2, 3)))

    assert torch.autograd.gradgradcheck(function, x.requires_grad_())


@needs_native
def test_weights_of_another_dtype_and_gradients_for_some():
    (x, weight, bias, groups), _ = case_inputs((2, 4, 2, 3), 2, dtype=torch.float64)
    weight = weight.float().requires_grad_()
    y = on_cpu(x, weight, bias.float(), groups)
    assert y.dtype == torch.float64
    (dweight,) = torch.autograd.grad(y.sum(), weight)  # dy is expanded, not dense
    expected = torch.autograd.grad(reference(x, weight, bias.float(), groups).sum(), weight)[0]
    torch.testing.assert_close(dweight, expected)


@needs_native
def test_opcheck():
    forward, backward = torch.ops.edm_fast.group_norm_silu_cpu, torch.ops.edm_fast.group_norm_silu_cpu_backward
    for layout in testing.LAYOUTS:
        for rows in (None, 1, 2):
            (x, weight, bias, groups), kwargs = case_inputs((2, 4, 3, 5), 2, layout, rows)
            args = (x, weight, bias, groups, 1e-5, kwargs.get("scale"), kwargs.get("shift"), True)
            torch.library.opcheck(forward.default, args)
            torch.library.opcheck(backward.default, (torch.ones_like(x), forward(*args)[1], *args))


@needs_native
def test_compiles_without_a_graph_break():
    (x, weight, bias, groups), kwargs = case_inputs((2, 4, 3, 5), 2, rows=2, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias, *kwargs.values())]

    def loss(x, weight, bias, scale, shift):
        return group_norm_silu(x * 2, weight, bias, groups, scale=scale, shift=shift).square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    with backend.use_backend("cpu"):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(compiled, loss(*leaves))
    torch.testing.assert_close(torch.autograd.grad(compiled, leaves), expected)


@needs_native
def test_reasons_and_layout():
    (x, weight, bias, groups), kwargs = case_inputs((2, 4, 3, 5), 2, rows=2)
    assert op_checks.choose("group_norm_silu", x, weight, bias, groups).backend == "cpu"
    half = op_checks.choose("group_norm_silu", x.half(), weight, bias, groups)
    assert half.backend == "reference" and "float16" in half.reasons["cpu"]
    wide = {name: t.double() for name, t in kwargs.items()}
    assert "dtype" in op_checks.choose("group_norm_silu", x, weight, bias, groups, **wide).reasons["cpu"]
    last = group_norm_silu(x.to(memory_format=torch.channels_last), weight, bias, groups)
    assert last.is_contiguous(memory_format=torch.channels_last)


@needs_native
def test_training_keeps_one_copy_of_x():
    """The statistics and x; the reference also keeps the normalised image."""
    (x, weight, bias, groups), _ = case_inputs((2, 4, 32, 32), 2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        on_cpu(x.requires_grad_(), weight, bias, groups)
    assert sum(kept) < 1.1 * x.numel()


def test_one_row_of_scale_and_many_of_shift():
    (x, *rest), kwargs = case_inputs((3, 8, 4, 4), 2, rows=3)
    one = {"scale": kwargs["scale"][:1], "shift": kwargs["shift"]}
    many = {"scale": one["scale"].expand(3, 8), "shift": kwargs["shift"]}
    assert torch.equal(reference(x, *rest, **one), reference(x, *rest, **many))
    torch.testing.assert_close(group_norm_silu(x, *rest, **one), reference(x, *rest, **many))


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
