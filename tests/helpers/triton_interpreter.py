"""Triton's interpreter with products that are the same on every machine."""

import types

import numpy as np


def sum_in_one_order():
    """Sum tl.dot in one order. NumPy's BLAS picks it by size and processor, so that on some machines the bits of an
    image would depend on its place in the batch, which on a GPU they do not."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return  # the tests that need it skip

    def matmul(a, b, dtype=None):
        return np.einsum("...ij,...jk->...ik", a, b, dtype=dtype, casting="same_kind")

    interpreter.np = types.SimpleNamespace(**{**vars(np), "matmul": matmul})
