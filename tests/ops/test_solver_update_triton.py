"""solver_update in Triton: bit-identical to the reference in every dtype, for all coefficients and memory layouts."""

import pytest
import torch

from edm_fast import backend, testing
from helpers import op_checks

reference = op_checks.forced("solver_update", "reference")
pytest.importorskip("triton")
DEVICE = op_checks.BACKENDS["triton"]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CASES = [case for case in op_checks.cases("solver_update", real=False) if case.id != "shape_(4097,)"]
RUN = op_checks.forced("solver_update", "triton")
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def draw(count, *shape, dtype=torch.float64):
    return [torch.randn(shape or (2, 3, 4, 5), dtype=torch.float64).to(DEVICE, dtype) for _ in range(count)]


def bits(x):
    x = x.nan_to_num(7.0) if x.is_floating_point() else x
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(call):
    """Signs of zeros and places of nan included."""
    with testing.poisoned():
        got = testing.outputs(RUN(*call[0], **call[1]))
    want = testing.outputs(reference(*call[0], **call[1]))
    assert len(got) == len(want)
    for g, w in zip(got, want):
        assert g.shape == w.shape and g.dtype == w.dtype and g.stride() == torch.empty_like(call[0][0]).stride()
        assert torch.equal(g.isnan(), w.isnan()) and torch.equal(bits(g), bits(w))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_bit_identical(dtype, case):
    if dtype == torch.bfloat16 and DEVICE == "cpu":  # Triton's interpreter cuts digits off where GPUs round
        op_checks.forward("solver_update", "triton", case, dtype)
    else:
        same_bits(case.inputs(dtype, DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="too large for the interpreter")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", op_checks.cases("solver_update", real=True))
def test_bit_identical_at_real_sizes(dtype, case):
    same_bits(case.inputs(dtype, DEVICE))


def test_coefficients_keep_all_their_digits():
    """Kernel arguments of Triton are float32, which these are not; 1, 0 and 16 are special to its compiler."""
    x, D, term, noise = draw(4)
    for value in (1 / 3, 1e-300, -1e200, 1.0, 0.0, -0.0, 16.0, 5e-324, float("inf"), float("nan")):
        for name in ("p", "q", "t", "a", "h", "w", "c"):
            if name == "t" and str(value) == "-0.0":
                continue  # torch.full loses its sign
            same_bits(((x, x, D), {"terms": [term], "weights": [0.7], "noise": noise, name: value}))
        same_bits(((x, x, D), {"terms": [term, noise], "weights": [0.1, value]}))


@pytest.mark.parametrize("dtype", DTYPES[:3] + DTYPES[3:] * (DEVICE == "cuda"), ids=str)
def test_coefficients_on_the_device(dtype):
    x, D, *terms, noise = draw(5, 7, 11, dtype=dtype)
    numbers = {"p": 1.7, "q": 0.31, "t": 0.7, "a": 0.9, "h": 0.13, "w": 0.37, "c": 0.21}
    given = {
        name: torch.full([1] * (k % 3), value, dtype=dtype, device=DEVICE)
        for k, (name, value) in enumerate(numbers.items())
    }
    weights = [torch.full((), value, dtype=dtype, device=DEVICE) for value in (0.61, -0.19)]
    same_bits(((x, x, D), {"terms": terms, "weights": weights, "noise": noise, **given}))
    for name in numbers:  # one there, the others numbers; and the other way round
        mixed = {"terms": terms, "weights": [weights[0], -0.19], "noise": noise}
        same_bits(((x, x, D), {**mixed, **numbers, name: given[name]}))
        same_bits(((x, x, D), {**mixed, **given, name: numbers[name]}))
    same_bits(((x,), {"terms": terms[:1], "weights": weights[:1], "a": given["a"]}))
    same_bits(((x, x, D), {"t": torch.ones([], dtype=dtype, device=DEVICE)}))


@pytest.mark.parametrize("dtype", DTYPES[:3] + DTYPES[3:] * (DEVICE == "cuda"), ids=str)
def test_every_operation_rounds(dtype):
    x, D, *terms, noise = draw(5, 1001, dtype=dtype)
    numbers = {"p": 1.7, "q": 0.31, "t": 0.7, "a": 0.9, "h": 0.13, "w": 0.37, "c": 0.21}
    same_bits(((x, x, D), {"terms": terms, "weights": [0.61, -0.19], "noise": noise, **numbers}))
    same_bits(((x, x, D), {**numbers, "t": 1.0}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_special_values(dtype):
    special = torch.tensor([0.0, -0.0, 1.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1e308], dtype=dtype)
    x, D = (t.reshape(-1).contiguous().to(DEVICE) for t in torch.meshgrid(special, special, indexing="ij"))
    for kwargs in ({}, {"t": 0.0}, {"h": -0.0, "t": 3.0}, {"w": 0.5, "terms": [D], "weights": [0.5]}):
        same_bits(((x, x, D), kwargs))
    same_bits(((x,), {"terms": [D], "weights": [1.0], "noise": x, "c": 1.0}))


@pytest.mark.parametrize("count", range(9))
def test_any_number_of_terms(count):
    (x, D, *terms), weights = draw(2 + count, 31), [0.9 - 0.3 * k for k in range(count)]
    same_bits(((x,), {"terms": terms, "weights": weights, "h": 0.3}))
    same_bits(((x, x, D), {"terms": terms, "weights": weights, "h": 0.3, "t": 0.7}))


def test_an_image_does_not_depend_on_the_batch():
    x, D = draw(2, 5, 3, 7, 9)
    y, d = RUN(x, x, D, t=0.3, h=-0.2)
    for k in range(5):
        alone = RUN(x[k : k + 1], x[k : k + 1], D[k : k + 1], t=0.3, h=-0.2)
        assert torch.equal(alone[0], y[k : k + 1]) and torch.equal(alone[1], d[k : k + 1])


def test_reasons():
    x, D = draw(2)
    for call, reason in (
        (dict(base=x, a=torch.tensor(0.5, device=DEVICE)), "coefficient.*another dtype"),
        (dict(base=x, terms=[D], weights=[torch.ones([], dtype=x.dtype, device="meta")]), "coefficient.*device"),
        (dict(base=x, h=torch.ones([5], dtype=x.dtype, device=DEVICE)), "coefficient.*more numbers"),
        (dict(base=x, a=torch.ones([1] * 5, dtype=x.dtype, device=DEVICE)), "coefficient"),
        (dict(base=x, terms=[D] * 9, weights=[1.0] * 9), "9"),
        (dict(base=x, terms=[D.to(memory_format=torch.channels_last)], weights=[1.0]), "layout"),
        (dict(base=x.clone().requires_grad_()), "no backward"),
        (dict(base=x.to(torch.float8_e5m2)), "float8"),
    ):
        with backend.use_backend("triton"), pytest.raises(backend.BackendError, match=reason):
            op_checks.choose("solver_update", **call)
    half = op_checks.choose("solver_update", x.half(), x.half(), D.half())
    if DEVICE == "cpu":
        assert half.backend == "reference" and "interpreter" in half.reasons["triton"]
    else:
        assert half.backend == "triton" and "float16" in half.reasons["cuda"]
