"""The sigmoid, of two special functions and three other instructions on each element."""

import triton
import triton.language as tl

from edm_fast.kernels._launch import INTERPRETED

PLAIN = tl.constexpr(INTERPRETED)  # the interpreter has no assembly
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) in float32, as exact as with tl.exp and a division: these are the same two approximations and
    steps for numbers below 2^-126, which here become zero (x < -87)."""
    if PLAIN:
        return 1.0 / (1.0 + tl.exp(-x))
    power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -LOG2_E], tl.float32, True, 1)
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1)
