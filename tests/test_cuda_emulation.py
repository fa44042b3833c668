"""Every CUDA source, compiled as host C++ and run thread by thread, against the references; the emulation itself."""

import ctypes
import re
import shutil

import pytest
import torch

from edm_fast import testing
from edm_fast.ops import solver_update, upfirdn  # noqa: F401
from helpers import cuda_emulated, op_checks
from helpers.cuda_emulated import ROOT, Emulated

pytestmark = pytest.mark.skipif(cuda_emulated.COMPILER is None, reason="needs a C++ compiler")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SETTINGS = [pytest.param({}, id="aligned"), pytest.param({"shift": 1, "order": 1}, id="unaligned_reversed")]


def small(op):
    chosen = [case for case in testing.cases(op, real=False) if "tall" not in case.name]
    return [pytest.param(case, id=case.name) for case in chosen]


def compare(op, function, call, budget=2.0):
    def reference(x, *args, **kwargs):
        # torch's own channels-last group norm takes E x^2 - (E x)^2, which in float64 is no measure
        return op_checks.forced(op, "reference")(x.contiguous() if op == "group_norm_silu" else x, *args, **kwargs)

    testing.check(function, reference, call, budget)


def same_bits(got, want):
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for g, w in zip(got, want):
        assert (g is None) == (w is None)
        assert g is None or torch.equal(g.view(bits[g.element_size()]), w.view(bits[w.element_size()]))


def test_every_source_is_emulated():
    door = (ROOT / "tests/cuda_emulation/door.cpp").read_text()
    for path in (ROOT / "csrc/cuda").glob("*.cu"):
        assert f'cuda/{path.name}"' in door


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upfirdn(dtype, settings):
    emulated = Emulated(**settings)
    for case in testing.cases("upfirdn", real=False):
        if case.name != "tall_blocks" and (x := case.inputs(dtype)[0][0]).numel():
            assert x.shape[0] and compare("upfirdn", emulated.upfirdn, case.inputs(dtype)) is None, case.name


def wide_cases():
    """Sizes whose channels or rows are whole 16-byte vectors in every dtype."""
    for up, down in ((2, 1), (1, 2), (3, 1)):
        for taps, padding in (([1, 1], 0), ([1, 3, 3, 1], 1)):
            for layout in ("contiguous", "channels_last"):
                yield up, down, taps, padding, layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up, down, taps, padding, layout", [*wide_cases()])
def test_upfirdn_in_vectors(up, down, taps, padding, layout, dtype):
    f = torch.outer(*[torch.tensor(taps, dtype=torch.float64)] * 2).to(dtype) / sum(taps) ** 2
    x = testing.laid_out(torch.randn(2, 16, 6, 16, generator=torch.Generator().manual_seed(0)).to(dtype), layout)
    kwargs = {"up": up, "down": down, "padding": padding}
    for settings in ({}, {"order": 2}, {"shift": 1}):
        compare("upfirdn", Emulated(**settings).upfirdn, ((x, f), kwargs))


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_upfirdn_adjoint(up, layout):
    """<A x, z> = <x, A^T z>: what the derivatives of the op lean on."""
    f, factor = torch.outer(*[torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)] * 2) / 64, (2, 1) if up else (1, 2)
    x = testing.laid_out(torch.randn(2, 4, 7, 8, dtype=torch.float64), layout)
    y = Emulated().upfirdn(x, f, *factor, padding=1)
    z = testing.laid_out(torch.randn_like(y), layout)
    gain = 4.0 if up else 1.0
    back = Emulated().upfirdn(z, f, *factor, padding=1, size=x.shape[2:], gain=gain, adjoint=not up)
    torch.testing.assert_close((y * z).sum(), (x * back).sum())


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", small("solver_update"))
def test_solver_update_is_bit_identical(case, dtype, settings):
    args, kwargs = case.inputs(dtype)
    if args[0].numel():
        want = op_checks.forced("solver_update", "reference")(*args, **kwargs)
        same_bits(Emulated(**settings).solver_update(*args, **kwargs), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1, 3, 4, 5, 1023])
def test_solver_update_tails(dtype, size):
    base, x, D, noise, *terms = torch.randn(7, size, dtype=torch.float64).to(dtype).unbind()
    kwargs = dict(p=3.0, q=2.0, t=0.7, a=0.9, h=0.1, w=0.4, terms=terms, weights=[0.3, 0.1, -1.0], noise=noise, c=0.2)
    want = op_checks.forced("solver_update", "reference")(base, x, D, **kwargs)
    for settings in ({}, {"shift": 1}, {"order": 2, "device": 1}):
        same_bits(Emulated(**settings).solver_update(base, x, D, **kwargs), want)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", small("group_norm_silu"))
def test_group_norm_silu(case, dtype, settings):
    call = case.inputs(dtype)
    if call[0][0].numel():
        compare("group_norm_silu", Emulated(**settings).group_norm_silu, call)


def norm_call(dtype, shape, groups, layout, adaptive=0, **kwargs):
    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    generator = torch.Generator().manual_seed(1)
    x = testing.laid_out(draw(*shape) + 1.5, layout)
    if adaptive:
        kwargs |= {"scale": draw(adaptive, shape[1]), "shift": draw(adaptive, shape[1])}
    return (x, draw(shape[1]), draw(shape[1]), groups), kwargs


# (shape, groups, does a slab need more than one part): 4 to 24 channels a group, vectors across groups among them
SHAPES = [
    ((2, 32, 4, 4), 8, False),
    ((1, 48, 4, 8), 8, False),
    ((2, 96, 8, 8), 8, False),
    ((1, 16, 32, 32), 4, False),
    ((1, 192, 4, 4), 8, False),
    ((1, 32, 80, 80), 2, True),
    ((2, 32, 64, 64), 4, True),
    ((1, 5, 61, 67), 1, True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape, groups, parts", SHAPES, ids=str)
def test_group_norm_silu_in_vectors_and_parts(shape, groups, parts, layout, dtype):
    call = norm_call(dtype, shape, groups, layout, adaptive=shape[0])
    emulated = Emulated(order=2)
    compare("group_norm_silu", emulated.group_norm_silu, call)
    assert (emulated.workspace > 0) == parts
    assert emulated.lib.launches() == 1 + parts
    if not parts:
        compare(
            "group_norm_silu", Emulated(shift=1).group_norm_silu, norm_call(dtype, shape, groups, layout, 1, silu=False)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 32, 8, 8), (2, 16, 64, 64)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_and_batch_invariance(layout, shape, dtype):
    (x, weight, bias, groups), _ = norm_call(dtype, shape, 4, layout)
    y, stats = Emulated().group_norm_silu(x, weight, bias, groups, stats=True)
    rows = x.double().reshape(shape[0], groups, -1)
    mean, rstd = rows.mean(2), (rows.var(2, unbiased=False) + 1e-5).rsqrt()
    torch.testing.assert_close(stats[0].double() + stats[1].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats[2].double(), rstd, rtol=1e-5, atol=0)
    for order in (1, 2):
        same_bits(Emulated(order=order).group_norm_silu(x, weight, bias, groups, stats=True), (y, stats))
    one = Emulated().group_norm_silu(x[:1].contiguous(memory_format=cuda_emulated.dense(x)), weight, bias, groups)
    same_bits([one.contiguous()], [y[:1].contiguous()])


def test_large_mean_costs_no_digits():
    (x, weight, bias, groups), _ = norm_call(torch.float32, (1, 16, 64, 64), 4, "channels_last")
    compare("group_norm_silu", Emulated().group_norm_silu, ((x + 1000, weight, bias, groups), {}))


def block_sum(fault=0, order=0, threads=128, device=0):
    lib = cuda_emulated.library()
    lib.emulate(order, 2)
    x, sums = torch.arange(threads, dtype=torch.float32), torch.zeros(threads)
    status = lib.block_sum(ctypes.c_void_p(sums.data_ptr()), ctypes.c_void_p(x.data_ptr()), threads, fault, device)
    return status, sums, lib


@pytest.mark.parametrize("order", [0, 1, 2])
def test_emulation_of_shuffles_barriers_and_devices(order):
    status, sums, lib = block_sum(order=order, device=1)
    assert status == 0 and (sums == 127 * 64).all()
    assert lib.launches() == 1 and lib.launch_device(0) == 1 and lib.current_device() == 0
    status, _, lib = block_sum(device=7)
    assert status == 1000 + 101 and lib.launches() == 0
    assert block_sum(threads=2048)[0] == 1000 + 9


@pytest.mark.parametrize("fault", [1, 3, 4])
def test_emulation_finds_divergent_barriers(fault):
    status, _, lib = block_sum(fault)
    assert status == 1000 + 719 and b"never come" in lib.error_text(status)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_emulation_finds_a_missing_barrier(order):
    """In any order of the threads, whether or not the result is right in it."""
    status, _, lib = block_sum(2, order)
    assert status == 1000 + 719 and b"race: a thread" in lib.error_text(status)


# file, code, the same with an error in it if BROKEN
PLANTED = [
    ("solver_update.cu", "first < s.size - vectors * V", "first + BROKEN < s.size - vectors * V"),
    (
        "solver_update.cu",
        "y.v[v] = add(y.v[v], mul(T(s.h), total.v[v]))",
        "y.v[v] = BROKEN ? std::fma(T(s.h), total.v[v], y.v[v]) : add(y.v[v], mul(T(s.h), total.v[v]))",
    ),
    ("upfirdn.cu", "col >= s.w", "col >= s.w + BROKEN"),
    ("upfirdn.cu", "narrow<T>(sum[v])", "narrow<T>(sum[v] + A(BROKEN && v == V - 1 && V > 1))"),
    ("group_norm_silu.cu", "parts[2 * k + 1] + d * d", "parts[2 * k + 1] + (BROKEN ? -1 : 1) * d * d"),
    ("group_norm_silu.cu", "fold<W>(sums, p, tile.row);\n        if (leader) sq", "BROKEN ? void() : \\g<0>"),
    ("group_norm_silu.cu", "if (row + half < live)", "if (row + half < live - BROKEN)"),
    ("group_norm_silu.cu", "if (r < mine) store", "if (r < mine + BROKEN) store"),
    # barriers
    ("group_norm_silu.cu", "__syncthreads();\n        tile.template add<true>", "if (!BROKEN) \\g<0>"),
    ("group_norm_silu.cu", "__syncthreads();\n    for (int live", "if (!BROKEN) \\g<0>"),
    ("group_norm_silu.cu", "__syncthreads();\n    }\n", "if (!BROKEN) \\g<0>"),
]


@pytest.fixture(scope="module")
def breakable(tmp_path_factory):
    """The sources with all planted errors, of which at most one is switched on: compiled once."""
    csrc = tmp_path_factory.mktemp("planted") / "csrc"
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("cpu"))
    for index, (file, good, bad) in enumerate(PLANTED):
        path, broken = csrc / "cuda" / file, f"(emulation::planted == {index})"
        text, count = re.subn(re.escape(good), bad.replace("BROKEN", broken), path.read_text())
        assert count == 1, good
        path.write_text(text)
    return cuda_emulated.opened(cuda_emulated.compile_emulation(csrc / "broken.so", csrc))


@pytest.mark.parametrize("index", [None, *range(len(PLANTED))])
def test_planted_errors_are_caught(index, breakable):
    breakable.plant(-1 if index is None else index)
    if index is None:
        for file in dict.fromkeys(file for file, *_ in PLANTED):
            try_planted(file, Emulated(breakable))
        return
    with pytest.raises(AssertionError, match="race: a thread" if "__sync" in PLANTED[index][1] else None):
        try_planted(PLANTED[index][0], Emulated(breakable))


def try_planted(file, broken):
    op = file.removesuffix(".cu")
    if op == "solver_update":
        args, kwargs = next(c for c in testing.cases(op) if c.name == "everything").inputs(torch.float32)
        same_bits(broken.solver_update(*args, **kwargs), op_checks.forced(op, "reference")(*args, **kwargs))
    elif op == "upfirdn":
        for case in testing.cases(op, real=False):
            if "7x9" in case.name and (case.inputs(torch.float32)[0][0]).numel():
                compare(op, broken.upfirdn, case.inputs(torch.float32))
        f = torch.full((2, 2), 0.25)
        compare(op, broken.upfirdn, ((torch.randn(1, 8, 4, 8).to(memory_format=torch.channels_last), f), {"down": 2}))
    else:
        for shape, layout in (((1, 16, 64, 64), "channels_last"), ((2, 12, 5, 7), "contiguous")):
            compare(op, broken.group_norm_silu, norm_call(torch.float32, shape, 4, layout))
