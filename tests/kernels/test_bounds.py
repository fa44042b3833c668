"""In the interpreter of the tests every address that a mask lets through lies in a tensor of the launch."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

if not triton.knobs.runtime.interpret:
    pytest.skip("kernels are compiled here", allow_module_level=True)


@triton.jit
def _copy(y_ptr, x_ptr, to, size, masked, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < masked, other=0)
    tl.store(y_ptr + to + i, x, mask=i < size)


def copy(x, y, to=0, size=None, masked=None):
    size = x.numel() if size is None else size
    _copy[1,](y, x, to, size, size if masked is None else masked, BLOCK=16)


def middle(dtype=torch.float32):
    """12 elements of 32, so that there is memory on both sides."""
    return torch.zeros(32, dtype=dtype)[10:22]


def test_what_lies_inside_passes():
    x, y = torch.arange(12.0), middle()
    copy(x, y)
    assert torch.equal(x, y)
    pair = torch.arange(8.0)
    copy(pair[:4], pair[2:], size=4, to=2)  # overlapping tensors
    assert pair.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: copy(middle(), middle(), size=12, masked=13),
            "1 of 13 loads of 4 bytes .* 0 behind .* one of 48 bytes",
        ),
        (lambda: copy(middle(), middle(), size=13, masked=12), "1 of 13 stores of 4 bytes .* 0 behind"),
        (lambda: copy(middle(), middle(), to=-1), "1 of 12 stores of 4 bytes .* 4 before"),
        (lambda: copy(middle(torch.bfloat16), middle(torch.bfloat16), to=1), "1 of 12 stores of 2 bytes"),
        (lambda: copy(middle(), torch.zeros(0), size=1), "1 of 1 stores"),
    ],
)
def test_planted_faults_are_found(call, message):
    with pytest.raises(Exception, match=message):
        call()
