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


# calls of which gradients are compared: shape of x, outputs, and the rest of `case_inputs`
GRADIENTS = {
    "scaled": ((2, 17, 9, 7), 20, {"scale": 0.7}),
    "one_embedding": ((2, 17, 5, 4), 20, {"emb": 1}),
    "strided": ((2, 5, 5, 6), 9, {"layout": "strided"}),
    "padding_0": ((2, 5, 5, 6), 9, {"padding": 0}),
    "k1_wide": ((1, 64, 3, 3), 70, {"k": 1, "emb": 1}),
    "one_pixel": ((3, 8, 1, 1), 5, {"emb": 3}),
    "no_images": ((0, 17, 9, 7), 20, {"emb": 1}),
}
all_gradients = functools.partial(op_checks.gradients, "conv2d")
