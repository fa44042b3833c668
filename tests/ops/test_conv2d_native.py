"""The native conv2d below the op: every algorithm and instruction set, in windows of wider images, against float64."""

import math
import operator

import pytest
import torch

from edm_fast import native
from helpers import native_conv as nc

pytestmark = nc.needs_native
THREADS = (1, 2, 3, 4, 5, 8)
# (n, channels, h, w, outputs, kernel, padding, rows, residual, scale)
HALF = math.sqrt(0.5)
REAL = {
    "ddpmpp_32": (1, 256, 32, 32, 256, 3, None, 1, True, HALF),
    "ddpmpp_16": (2, 256, 16, 16, 256, 3, None, 2, False, 1.0),
    "ddpmpp_8": (3, 256, 8, 8, 256, 3, None, 1, True, HALF),
    "ddpmpp_512_256": (1, 512, 16, 16, 256, 3, None, 1, False, 1.0),
    "ddpmpp_in": (1, 3, 32, 32, 128, 3, None, 1, False, 1.0),
    "ddpmpp_out": (1, 256, 32, 32, 3, 3, None, 1, False, 1.0),
    "qkv": (1, 256, 16, 16, 768, 1, None, 1, False, 1.0),
    "adm_192": (1, 192, 16, 16, 192, 3, None, 1, True, 1.0),
    "adm_576_skip": (1, 576, 8, 8, 384, 1, None, 1, False, 1.0),
    "adm_768": (1, 768, 8, 8, 768, 3, None, 0, True, 1.0),
    "demo": (2, 32, 32, 32, 64, 3, None, 1, False, 1.0),
}
ODD = {
    "one_pixel": (3, 5, 1, 1, 3, 3, None, 3, True, HALF),
    "one_pixel_k1": (3, 17, 1, 1, 40, 1, None, 3, True, HALF),
    "one_channel": (2, 1, 5, 5, 1, 3, None, 0, False, 1.0),
    "one_channel_k1": (2, 1, 5, 3, 1, 1, None, 1, True, -2.0),
    "line": (2, 3, 1, 13, 3, 3, None, 1, False, 1.0),
    "column": (2, 3, 13, 1, 40, 3, None, 2, True, 1.0),
    "no_tile_fits": (2, 17, 7, 9, 40, 3, None, 2, True, HALF),
    "k1": (2, 33, 7, 9, 40, 1, None, 2, True, HALF),
    "padding_0": (2, 33, 7, 10, 3, 3, 0, 1, True, 1.0),
    "padding_0_one_output": (3, 5, 3, 3, 40, 3, 0, 0, False, 1.0),
    "padding_2": (2, 5, 6, 9, 33, 3, 2, 2, True, 0.5),
    "padding_2_k1": (2, 5, 3, 4, 33, 1, 2, 2, True, 0.5),
    "padding_5": (1, 3, 2, 3, 4, 3, 5, 1, False, 1.0),
    "many_blocks": (5, 33, 31, 21, 65, 3, None, 5, True, 1.0),
    "pairs_and_a_rest": (2, 115, 7, 9, 40, 3, None, 2, True, HALF),
    "pairs_k1": (3, 147, 5, 3, 40, 1, None, 3, True, HALF),
    "pairs_of_one_pixel": (2, 50, 1, 1, 33, 3, None, 0, False, 1.0),
    "pairs_beyond_a_slice": (1, 333, 9, 5, 33, 3, None, 1, True, 1.0),
}


def runs(table):
    """(algorithm, case) where there is such a kernel."""
    return [
        pytest.param(algorithm, case, id=f"{name}-{algorithm.name}")
        for name, case in table.items()
        for algorithm in nc.ALGORITHMS
        if (case[5], case[5] // 2 if case[6] is None else case[6]) in nc.layers(algorithm)
    ]


def inputs(case, algorithm):
    """The arguments of `nc.convolve` and those of `nc.defined`."""
    x, *rest = nc.inputs(*case, double=algorithm.doubled)
    return (x, *rest), (nc.seen(x, algorithm), *rest)


def error(case, algorithm, **kwargs):
    """Largest error of one convolution over its budget."""
    args, seen = inputs(case, algorithm)
    y = nc.convolve(*args[:2], algorithm, *args[2:], **kwargs)
    return ((y.double() - nc.defined(*seen)).abs().max() / nc.budget(algorithm, *seen)).item()


def test_the_fields_of_each_algorithm():
    """What the fields of an algorithm promise of its layers, packed weights and errors."""
    assert {"direct", "winograd4x4", "winograd4x4-unpacked"} <= {*native.ALGORITHMS} and len(nc.ALGORITHMS) == 21
    for place, a in enumerate(nc.ALGORITHMS):
        assert operator.index(a) == place and a.rows <= a.columns and not (a.paired and a.int16)
        same_size, layers = [(3, 1)] if a.doubled else [(3, p) for p in range(6)], nc.layers(a)
        assert layers == (same_size if a.rows > 1 else [(1, 0)] if a.paired or a.int16 else layers)
        assert a.int16 == (a.error == "bf16") and (a.columns <= 2 or a.error != "exact")
        for kernel, _ in layers:
            size = native.lib.conv2d_packed_size(algorithm=a, outputs=40, inputs=50, kernel=kernel)
            least = 40 * 50 * kernel**2 // (1 + a.int16) if a.packed else 2 * (64 + 50) * a.paired
            assert size > least if a.packed else size == least
    assert nc.layers(native.ALGORITHMS["direct"]) == [(k, p) for k in (1, 3) for p in range(6)]


@pytest.mark.parametrize(("algorithm", "case"), runs(REAL))
def test_real_layers(algorithm, case):
    assert error(case, algorithm) <= 1


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize(("algorithm", "case"), runs(ODD))
def test_odd_shapes_in_wider_images(algorithm, case, isa):
    with native.use_isa(isa):
        assert error(case, algorithm) <= 1
        assert error(case, algorithm, margin=(3, 5)) <= 1


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize(("algorithm", "kernel"), nc.KINDS)
def test_a_layer_of_each_kind_on_every_instruction_set(algorithm, kernel, isa):
    with native.use_isa(isa):
        assert error((2, 192, 12, 10, 96, kernel, None, 2, True, HALF), algorithm, margin=(16, 7)) <= 1


@pytest.mark.parametrize(("algorithm", "case"), runs(ODD))
def test_instruction_sets_agree(algorithm, case):
    """With multiply-adds all sums are the same but, unless vectors are as wide, those over their lanes: the norms that
    scale integers, the corrections of pairs. Without multiply-adds (portable) every product is rounded."""
    args, found = inputs(case, algorithm)[0], {}
    for isa in nc.isas():
        with native.use_isa(isa):
            found[isa] = nc.convolve(*args[:2], algorithm, *args[2:])
    found.pop("portable")
    if algorithm.int16 or algorithm.paired:
        found.pop("avx2", None)
    first, *others = found.values() or [None]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize(("algorithm", "case"), runs(ODD))
def test_threads_agree(algorithm, case, isa):
    args, _ = inputs(case, algorithm)
    with native.use_isa(isa):
        first, *others = (nc.convolve(*args[:2], algorithm, *args[2:], threads=threads) for threads in THREADS)
    assert all(torch.equal(first, other) for other in others)


@pytest.fixture
def place_of_cores():
    """`native.lib.set_far_apart`; what is measured holds again afterwards."""
    yield native.lib.set_far_apart
    native.lib.set_far_apart(-1)


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("shape", [(3, 20, 9, 13), (1, 264, 5, 6), (2, 600, 32, 33)], ids=str)
@pytest.mark.parametrize("algorithm", nc.UNPACKED)
def test_cores_that_are_far_apart_agree(place_of_cores, algorithm, shape, isa):
    """Of several panels and of one, of a single chunk of tiles and of several; with the norm of the image."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    _, affine = nc.normalised(x, True, groups=4)
    for outputs in (40, 3):
        weight = torch.randn(outputs, shape[1], 3, 3, generator=torch.Generator().manual_seed(2))
        found = []
        for far in (0, 1):
            place_of_cores(far)
            with native.use_isa(isa):
                found.append(nc.convolve(x, weight, algorithm, threads=2, affine=affine, silu=True, margin=(16, 3)))
        assert torch.equal(*found)


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("algorithm", [a for a in nc.UNPACKED if nc.variant(a, packed=True)])
@pytest.mark.parametrize("threads", [1, 5])
def test_unpacked_weights_give_the_bits_of_packed_ones(algorithm, isa, threads):
    """Of a single chunk of tiles, of several, and of threads that share a panel."""
    for case in ((3, 19, 9, 14, 70, 3, None, 3, True, HALF), (2, 600, 32, 33, 33, 3, None, 1, False, 1.0)):
        args, _ = inputs(case, algorithm)
        with native.use_isa(isa):
            found = nc.convolve(*args[:2], algorithm, *args[2:], threads=threads)
            packed = nc.convolve(*args[:2], nc.variant(algorithm, packed=True), *args[2:])
        assert torch.equal(found, packed)


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(3, 20, 9, 13), (1, 264, 5, 6), (2, 64, 16, 24)], ids=str)
@pytest.mark.parametrize("algorithm", nc.UNPACKED)
def test_the_norm_of_an_image_is_taken_as_it_is_read(algorithm, shape, threads, isa):
    """Bit for bit what comes of the normalised image; zeros around it are zeros, not the norm of zeros."""
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(shape, generator=generator), torch.randn(40, shape[1], 3, 3, generator=generator)
    with native.use_isa(isa):
        for silu in (False, True):
            image, affine = nc.normalised(x, silu, groups=4)
            want = nc.convolve(image, weight, algorithm, threads=threads)
            found = nc.convolve(x, weight, algorithm, threads=threads, affine=affine, silu=silu, margin=(16, 3))
            assert torch.equal(found, want)


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize(("algorithm", "kernel"), nc.KINDS)
def test_an_image_does_not_depend_on_its_batch(algorithm, kernel, isa):
    """Alone, at any place of a batch, beside anything."""
    x, weight, rows, residual, scale, _ = inputs((7, 65, 9, 6, 40, kernel, None, 7, True, HALF), algorithm)[0]
    x[2] *= 1e4
    x[5] = math.nan
    with native.use_isa(isa):
        whole = nc.convolve(x, weight, algorithm, rows, residual, scale, threads=3)
        for order in ([0], [6], [1, 0], [6, 2, 3, 0, 1]):
            part = nc.convolve(x[order], weight, algorithm, rows[order], residual[order], scale)
            assert torch.equal(part, whole[order])


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("algorithm", "kernel"), nc.KINDS)
def test_what_is_not_finite_shows(algorithm, kernel, value, isa):
    """At the outputs that its pixel reaches, and in no other image."""
    x, weight, *_ = nc.inputs(3, 97, 9, 9, 40, kernel)
    for channel in (0, 20, 33, 96):
        broken = x.clone()
        broken[1, channel, 4, 5] = value
        with native.use_isa(isa):
            y = nc.convolve(broken, weight, algorithm)
        reached = nc.defined(nc.seen(broken, algorithm), weight).isfinite().logical_not()
        assert reached.any() and not y[reached].isfinite().any()
        assert y[[0, 2]].isfinite().all()


ROWS = {
    "constant": lambda k: torch.ones(k),
    "alternating": lambda k: torch.ones(k).copy_(torch.arange(k) % 2 * 2 - 1),
    "halves": lambda k: torch.full((k,), 0.5 - 2**-20),  # every one rounds up
    "one_huge": lambda k: torch.full((k,), 1e-3).index_fill(0, torch.tensor([k // 2]), 1e6),
    "few": lambda k: torch.zeros(k).index_fill(0, torch.arange(min(k, 2)), 1.0),
}


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("algorithm", nc.INTEGERS)
def test_integers_do_not_overflow(algorithm, row, isa):
    """The products of equal rows are the largest that there are, up to the most channels allowed. A sum that left 32
    bits would be wrong by half of its range."""
    kernel = nc.layers(algorithm)[0][0]
    for channels in (2, 31, 256, 4096):
        line = ROWS[row](channels)
        for power in (-60, -2, 0, 20):
            x = (line * 2.0**power)[None, :, None, None].expand(1, channels, 4, 4).contiguous()
            weight = line[None, :, None, None].expand(2, channels, kernel, kernel).contiguous()
            with native.use_isa(isa):
                y = nc.convolve(x, torch.cat([weight, -weight]), algorithm)
            exact = nc.defined(nc.seen(x, algorithm), torch.cat([weight, -weight]))
            assert (y - exact).abs().max() <= 5e-3 * exact.abs().max()


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("value", [1e-30, 1e-19, 1e-15, 1e15, 1e19, 1e30])
@pytest.mark.parametrize("algorithm", [*nc.INTEGERS, *nc.PAIRED])
def test_integers_and_pairs_of_numbers_whose_squares_are_none(algorithm, value, isa):
    bound = 1e-2 if algorithm.int16 else 1e-4
    x, weight, *_ = nc.inputs(1, 64, 4, 4, 8, nc.layers(algorithm)[0][0])
    with native.use_isa(isa):
        unit = nc.convolve(x, weight, algorithm)
        for y in (nc.convolve(x * value, weight, algorithm), nc.convolve(x, weight * value, algorithm)):
            assert (y.double() / value - unit).abs().max() <= bound * unit.abs().max()


def test_integers_flush_what_is_too_small():
    for value in (1e-37, 1e-39, 1e-44, 0.0):
        y = nc.convolve(torch.full((1, 8, 4, 4), value), torch.ones(8, 8, 3, 3), native.ALGORITHMS["winograd4x4-int16"])
        assert y.abs().max() <= 1e-30


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("algorithm", "kernel"), nc.KINDS)
def test_the_transposed_packing_is_the_adjoint(algorithm, kernel, padding, isa):
    """<A x, dy> = <x, A^T dy> for the convolution A."""
    if padding >= kernel or (kernel, padding) not in nc.layers(algorithm) or algorithm.doubled:
        pytest.skip("has no adjoint of this kind")
    x, weight, *_ = nc.inputs(2, 17, 9, 7, 55, kernel, padding)
    y = nc.defined(x, weight, padding=padding)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    with native.use_isa(isa):
        dx = nc.convolve(dy, weight, algorithm, padding=kernel - 1 - padding, transposed=True)
    assert dx.shape == x.shape
    exact = torch.nn.functional.conv_transpose2d(dy.double(), weight.double(), padding=padding)
    torch.testing.assert_close((y * dy).sum(), (x * exact).sum())
    bound = 2e-2 if algorithm.int16 else 1e-5
    assert (dx - exact).abs().max() <= bound * exact.abs().max()


def uneven():
    """(image, weight) of a 3x3 layer by name: sizes of channels, outputs and pixels are orders of magnitude apart."""
    x, weight, *_ = nc.inputs(1, 100, 16, 16, 40, 3)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    channels, outputs = torch.logspace(-3, 3, 100)[order][:, None, None], torch.logspace(-2, 2, 40)
    pixels, partners = torch.logspace(0, 4, 16)[:, None], torch.ones(100, 1, 1)
    partners[[4, 20]] = 1e3  # the two of a pair
    tiny = torch.ones(100, 1, 1)
    tiny[3], tiny[7] = 1e-38, 0
    return {
        "channels": (x * channels, weight),
        "channels and their weights": (x * channels, weight / channels),
        "channels of almost nothing": (x, weight * tiny),
        "partners": (x * partners, weight),
        "pixels": (x * pixels, weight),
        "outputs": (x, weight * outputs[:, None, None, None]),
        "an offset": (x + 3, weight),
    }


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("name", uneven())
@pytest.mark.parametrize("algorithm", nc.PAIRED)
def test_pairs_of_uneven_sizes(algorithm, name, isa):
    """The error of each output channel stays near that of one product after another; two terms that outweigh all others
    and are a pair are the worst case."""
    usual = nc.variant(algorithm, paired=False)
    x, weight = uneven()[name]
    weight = weight[:, :, 1:2, 1:2].contiguous() if nc.layers(algorithm) == [(1, 0)] else weight
    with native.use_isa(isa):
        found, other = nc.convolve(x, weight, algorithm), nc.convolve(x, weight, usual)
    exact = nc.defined(nc.seen(x, algorithm), weight)
    error, other = ((y - exact).square().mean((0, 2, 3)).sqrt() for y in (found, other))
    assert (error <= (10 if name == "partners" else 5) * other).all(), (error / other).max()


@pytest.mark.parametrize("isa", nc.isas())
@pytest.mark.parametrize("algorithm", nc.PAIRED)
def test_pairs_with_zeros_sum_to_zero(algorithm, isa):
    """Not to what rounding leaves of the corrections: of an image without light, and of weights that begin as zeros."""
    x, weight, rows, *_ = nc.inputs(2, 64, 9, 9, 40, nc.layers(algorithm)[0][0], rows=1)
    x[1] = 0
    with native.use_isa(isa):
        y = nc.convolve(x, weight, algorithm, rows)
        nothing = nc.convolve(x, torch.zeros_like(weight), algorithm, rows)
    assert y[0].std() > 0.5
    assert torch.equal(y[1], rows[0][:, None, None].expand_as(y[1]))
    assert torch.equal(nothing, rows[0][:, None, None].expand_as(y))


GOOD = {"n": 2, "h": 4, "w": 5, "inputs": 6, "outputs": 8, "kernel": 3, "padding": 1, "bias_rows": 0}
GOOD |= {"y_pitch": 8, "x_pitch": 6, "residual_pitch": 8}
BAD = {
    "no such algorithm": ({}, {"algorithm": len(nc.ALGORITHMS)}),
    "algorithm before the first": ({}, {"algorithm": -1}),
    "kernel of the algorithm": ({"kernel": 1, "padding": 0}, {"algorithm": "winograd4x4"}),
    "kernel of 5": ({"kernel": 5}, {}),
    "negative batch": ({"n": -1}, {}),
    "no height": ({"h": 0}, {}),
    "no width": ({"w": 0}, {}),
    "no channels": ({"inputs": 0}, {}),
    "no outputs": ({"outputs": 0}, {}),
    "negative padding": ({"padding": -1}, {}),
    "too small": ({"padding": 0, "h": 2}, {}),
    "rows without a bias": ({"bias_rows": 1}, {}),
    "bias without rows": ({}, {"bias": True}),
    "rows of another batch": ({"bias_rows": 3}, {"bias": True}),
    "y pitch": ({"y_pitch": 7}, {}),
    "x pitch": ({"x_pitch": 5}, {}),
    "residual pitch": ({"residual_pitch": 7}, {"residual": True}),
    "padded integers": ({"kernel": 1}, {"algorithm": "direct-int16"}),
    "integers of 3x3": ({"padding": 0}, {"algorithm": "direct-int16"}),
    "padded pairs": ({"kernel": 1}, {"algorithm": "direct-paired"}),
    "direct pairs of 3x3": ({"padding": 0}, {"algorithm": "direct-paired"}),
    "pairs without room": ({}, {"algorithm": "winograd4x4-unpacked-paired", "workspace": False}),
    "pairs without balance": ({}, {"algorithm": "winograd4x4-unpacked-paired", "balance": False}),
    "doubling without padding": ({"padding": 0}, {"algorithm": "winograd4x4-doubled"}),
    "too many channels for integers": (
        {"kernel": 3, "inputs": 4097, "x_pitch": 4097},
        {"algorithm": "winograd4x4-int16"},
    ),
    "and after doubling": ({"kernel": 3, "inputs": 4097, "x_pitch": 4097}, {"algorithm": "winograd4x4-doubled-int16"}),
    "unpacked weights of 1x1": ({"kernel": 1, "padding": 0}, {"algorithm": "winograd4x4-unpacked"}),
    "unpacked weights without room": ({}, {"algorithm": "winograd4x4-unpacked", "workspace": False}),
    "packed weights to be transposed": ({}, {"algorithm": "winograd4x4", "transposed": True}),
    "a norm before packed weights": ({}, {"algorithm": "winograd4x4", "affine": True}),
    "unpacked doubling without padding": ({"padding": 0}, {"algorithm": "winograd4x4-doubled-unpacked"}),
    "element type": ({}, {"dtype": 1}),
    "instruction set": ({}, {"isa": len(native.ISAS)}),
}


def run_with(sizes, algorithm="direct", dtype=0, isa=0, transposed=False, **present):
    room = torch.zeros(30_000)  # enough for every case, should one be let through
    present = {"workspace": True, "balance": True, **present}
    tensors = dict.fromkeys(["y", "x", "weight", *(name for name in present if present[name])], room.data_ptr())
    rest = dict(scale=1.0, transposed=transposed, isa=isa, threads=1)
    algorithm = native.ALGORITHMS.get(algorithm, algorithm)
    native.lib.conv2d_fwd_cpu(dtype=dtype, algorithm=algorithm, **tensors, **sizes, **rest)


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    changes, rest = BAD[name]
    with pytest.raises(RuntimeError, match="bad argument|element type"):
        run_with({**GOOD, **changes}, **rest)


def test_good_arguments_are_not():
    """What the bad ones are changed from; and no images at all."""
    run_with(GOOD)
    run_with({**GOOD, "bias_rows": 1}, bias=True, residual=True)
    run_with({**GOOD, "n": 0})
    run_with(GOOD, "winograd4x4-unpacked", transposed=True)


def test_bad_packings_are_refused():
    weight, packed = torch.zeros(8, 4, 3, 3), torch.zeros(40_000)

    def pack(outputs, inputs, kernel, transposed, name, dtype=torch.float32):
        algorithm = native.ALGORITHMS.get(name, name)
        sizes = dict(outputs=outputs, inputs=inputs, kernel=kernel, transposed=transposed, algorithm=algorithm)
        native.call("conv2d_pack_cpu", packed=packed.to(dtype), weight=weight.to(dtype), **sizes)

    for sizes in (
        (8, 4, 5, False, "direct"),
        (8, 4, 1, False, "winograd4x4"),
        (0, 4, 3, False, "direct"),
        (8, 0, 3, False, "direct"),
        (8, 4, 3, False, -1),
        (8, 4, 3, False, len(nc.ALGORITHMS)),
        (8, 4, 3, True, "winograd4x4-doubled"),
        (8, 4, 3, False, "winograd4x4-unpacked"),
        (8, 4097, 1, False, "direct-int16"),
        (4097, 8, 1, True, "direct-int16"),  # the sum runs over 4097
    ):
        with pytest.raises(RuntimeError, match="bad argument"):
            pack(*sizes)
    for algorithm, kernel in ((native.ALGORITHMS["winograd4x4"], 1), (len(nc.ALGORITHMS), 3)):
        assert native.lib.conv2d_packed_size(algorithm=algorithm, outputs=1, inputs=1, kernel=kernel) == -1
    with pytest.raises(RuntimeError, match="element type"):
        pack(8, 4, 3, False, "direct", torch.float64)
