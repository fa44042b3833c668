"""edm_fast.cases: the error of a result, its budget, and distances in units in the last place."""

import math

import pytest
import torch

import edm_fast.ops
from edm_fast import backend, cases


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ulp_distance(dtype):
    one = torch.tensor([1.0, -3.0, 0.0], dtype=dtype)
    up = torch.nextafter(one, torch.full_like(one, math.inf)) if dtype in (torch.float32, torch.float64) else None
    assert cases.ulp_distance(one, one) == 0 == cases.ulp_distance(one * 0, -one * 0)
    if up is not None:
        assert cases.ulp_distance(one, up) == 1 == cases.ulp_distance(up, one)
    tiny = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # the smallest number there is
    assert cases.ulp_distance(torch.tensor([tiny], dtype=dtype), torch.tensor([-tiny], dtype=dtype)) == 2
    large = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert cases.ulp_distance(large, -large) > 2.0 ** (8 * dtype.itemsize - 2)  # no overflow
    eps = torch.finfo(dtype).eps
    assert cases.ulp_distance(torch.tensor([2.0, 1.0], dtype=dtype), torch.tensor([2.0, 1 + 5 * eps], dtype=dtype)) == 5


def test_ulp_distance_of_nan_strided_and_empty():
    nan = torch.tensor([math.nan, 1.0])
    assert cases.ulp_distance(nan, nan) == 0
    assert cases.ulp_distance(nan, torch.ones(2)) == math.inf
    assert cases.ulp_distance(torch.ones(0), torch.ones(0)) == 0
    wide = torch.arange(8.0).reshape(2, 4)
    assert cases.ulp_distance(wide[:, ::2], wide[:, ::2].clone()) == 0


def distance(result, exact):
    return cases.distances(result, [exact.float()], [exact.double()])[0]


def test_distances():
    exact = torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64) / 3
    plain = exact.float()
    same = distance(plain.clone(), exact)
    assert same.identical and same.ulp == 0 and same.ok and same.size == pytest.approx(4 / 3)
    rounding = (plain - exact).abs().max().item()
    assert same.error == rounding and same.budget == 2 * rounding + 4 * torch.finfo(torch.float32).eps * same.size
    off = distance(plain * (1 + 1e-5), exact)
    assert not off.ok and not off.identical and 50 < off.ulp < 200
    assert not distance(plain * math.nan, exact).ok
    zeros = torch.zeros(2)
    assert not cases.distances(-zeros, [zeros], [zeros.double()])[0].identical  # equal, but not the same bits
    assert cases.distances(zeros[:0], [zeros[:0]], [zeros[:0].double()]) == []
    with pytest.raises(AssertionError):
        cases.distances(zeros.double(), [zeros], [zeros.double()])


def test_every_op_has_cases():
    assert set(backend.ops()) == set(edm_fast.ops.__all__) == set(cases.CASES)
    for op in cases.CASES:
        names = [case.name for case in cases.cases(op)]
        assert len(set(names)) == len(names) and cases.cases(op, real=True)
