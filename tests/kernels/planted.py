"""Kernels with a fault each, and one without, for the test of resources.py: never run, only compiled."""

import triton
import triton.language as tl

from edm_fast.kernels._launch import Variant, in_turn


@triton.jit
def _scaled(y_ptr, x_ptr, factor, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i) * factor + 1.0)


@triton.jit
def _centred(y_ptr, x_ptr, BLOCK: tl.constexpr):
    """Every element is still needed after the sum over all of them."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, x - tl.sum(x, axis=0))


@triton.jit
def _product(y_ptr, x_ptr, SIZE: tl.constexpr, WIDEN: tl.constexpr = False):
    i = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + i)
    if WIDEN:
        x = x.to(tl.float16)
    tl.store(y_ptr + i, tl.dot(x, tl.trans(x)))


@triton.jit
def _early(y_ptr, x_ptr, BLOCK: tl.constexpr, EARLY: tl.constexpr, FIRST: tl.constexpr, LATE: tl.constexpr):
    in_turn(EARLY and FIRST)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    in_turn(LATE)
    tl.store(y_ptr + i, x)


@triton.jit
def _misspelt(y_ptr, x_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, BLOCK), no_such_name)  # noqa: F821


def variants():
    pointers = {"y_ptr": "*fp32", "x_ptr": "*fp32"}
    scaled, aligned = {**pointers, "factor": "fp32"}, ("y_ptr", "x_ptr")
    small, half, eighth = {"BLOCK": 512}, {**pointers, "x_ptr": "*fp16"}, {**pointers, "x_ptr": "*fp8e4nv"}
    size, wide = {"SIZE": 64, "WIDEN": False}, {"SIZE": 64, "WIDEN": True}
    early = {**small, "EARLY": True, "FIRST": False, "LATE": False}
    hopper = {"aligned": aligned, "chips": ("sm_90a",)}
    return {
        "early": Variant(_early, pointers, early | {"FIRST": True}, **hopper),
        "never_waits": Variant(_early, pointers, early, **hopper),
        "waits_late": Variant(_early, pointers, early | {"LATE": True}, **hopper),
        "fine": Variant(_scaled, scaled, small, aligned),
        "spills": Variant(_centred, pointers, {"BLOCK": 16384}, aligned, num_warps=1),
        "no_products": Variant(_scaled, scaled, small, aligned, matrix_products=True),
        "products": Variant(_product, half, size, aligned, matrix_products=True),
        "float8": Variant(_product, eighth, size, aligned, matrix_products=True, float8=True),
        "widened": Variant(_product, eighth, wide, aligned, matrix_products=True, float8=True),
        "narrow": Variant(_scaled, scaled, small),
        "fused": Variant(_scaled, scaled, small, aligned),
        "misspelt": Variant(_misspelt, pointers, small, aligned),
    }
