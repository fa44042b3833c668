"""Kernels with a fault each, and one without, for the test of resources.py: never run, only compiled."""

import triton
import triton.language as tl

from edm_fast.kernels._launch import Variant


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
def _product(y_ptr, x_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, tl.dot(x, x))


@triton.jit
def _misspelt(y_ptr, x_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, BLOCK), no_such_name)  # noqa: F821


def variants():
    pointers = {"y_ptr": "*fp32", "x_ptr": "*fp32"}
    scaled, aligned = {**pointers, "factor": "fp32"}, ("y_ptr", "x_ptr")
    small, half = {"BLOCK": 512}, {"y_ptr": "*fp32", "x_ptr": "*fp16"}
    return {
        "fine": Variant(_scaled, scaled, small, aligned),
        "spills": Variant(_centred, pointers, {"BLOCK": 16384}, aligned, num_warps=1),
        "no_products": Variant(_scaled, scaled, small, aligned, matrix_products=True),
        "products": Variant(_product, half, {"SIZE": 64}, aligned, matrix_products=True),
        "narrow": Variant(_scaled, scaled, small),
        "fused": Variant(_scaled, scaled, small, aligned),
        "misspelt": Variant(_misspelt, pointers, small, aligned),
    }
