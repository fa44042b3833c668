"""Calls of conv2d with every argument, and their gradients: for the tests of all its backends."""

import functools
import math

import torch

from edm_fast import testing
from helpers import op_checks


def case_inputs(
    shape=(2, 17, 9, 7), out=20, k=3, layout="contiguous", dtype=torch.float32, emb=2, device="cpu", **kwargs
):
    """All arguments of one call: a tuple of tensors (x, weight, bias, emb, residual), and the rest."""
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    grow = 2 * kwargs.get("padding", k // 2) - k + 1
    shapes = (shape, (out, c, k, k), (out,), (emb, out), (n, out, h + grow, w + grow))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    tensors[1] /= math.sqrt(c * k * k)
    tensors = [t.to(device=device, dtype=dtype) for t in tensors]
    return tuple(testing.laid_out(t, layout if t.ndim == 4 else "contiguous") for t in tensors), kwargs


all_gradients = functools.partial(op_checks.gradients, "conv2d")
