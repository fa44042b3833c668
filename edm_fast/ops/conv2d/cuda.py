"""conv2d on GPUs by cuDNN, and one pass for all that comes after it: forward bias, embedding, residual and scale,
backward their gradients. That pass is Triton's; in half precision and float32. Under autocast it takes the dtype that
the reference's convolution would.

The reference makes a pass for each of the four terms, forward and backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.conv2d import _kernel, _tail
from edm_fast.ops.conv2d._kernel import channels_last
from edm_fast.ops.conv2d.reference import Conv2dArgs


def _forward(args: Conv2dArgs) -> torch.Tensor:
    from edm_fast.kernels import conv2d as kernels  # late: a missing triton is a reason, not a crash

    weight = args.weight.to(args.x.dtype, memory_format=torch.channels_last)
    y = F.conv2d(channels_last(args.x), weight, padding=args.pad())
    return kernels.finish(y, _kernel.rows(args), args.residual, args.scale)


def _gradient(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, padding: int, of_x: bool) -> torch.Tensor:
    """That of x or of the weight; the numbers of this one itself do not matter."""
    rest = (None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, (of_x, not of_x, False))
    return torch.ops.aten.convolution_backward(channels_last(dy), x, weight, *rest)[0 if of_x else 1]


def _adjoint(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    weight = args.weight.to(dy.dtype, memory_format=torch.channels_last)
    return channels_last(_gradient(dy, _kernel.fresh_adjoint(dy, args), weight, args.pad(), True))


def _weight_gradient(dy: torch.Tensor, args: Conv2dArgs) -> torch.Tensor:
    weight = channels_last(_kernel.fresh_weight_gradient(args))
    return _gradient(dy, channels_last(args.x), weight, args.pad(), False).contiguous()


_run = _kernel.on_kernel("cuda", _triton.DEVICES, _forward, _adjoint, _weight_gradient, _tail.tail_backward)


def forward(args: Conv2dArgs) -> torch.Tensor:
    return _run(_kernel.in_autocast(args))


def reason(args: Conv2dArgs) -> str | None:
    why = _triton.reason(args.x, args.weight, args.bias, args.emb, args.residual)
    return why or ("outside of plans it does not clip" if args.clip is not None else None)


def slower(args: Conv2dArgs) -> str | None:
    terms = [args.bias is not None, args.emb is not None, args.residual is not None, args.scale != 1.0]
    if terms.count(True) < 2:
        return "torch takes as few passes for so short a tail"
    if not any([t.is_contiguous(memory_format=torch.channels_last) for t in (args.x, args.weight)]):
        return "neither images nor weights lie channels last"
    return _triton.slower(args.x)


cuda = Implementation("cuda", "cuda", forward, reason, slower, differentiable=True)
