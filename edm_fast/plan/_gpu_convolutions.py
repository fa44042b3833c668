"""How the kernels compute a convolution in a plan on a GPU: with weights packed beforehand, the tail in the same pass
as the sums or in one of its own, the norm before it as a prologue, and the statistics of the norm after it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.conv2d._kernel import rows
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs

Pack = Callable[[torch.Tensor, str], torch.Tensor]  # a weight of the network in the layout of this name, made once
WINOGRAD_LAYOUTS = "winograd", "winograd factors"
WINOGRAD_CHANNELS = 16  # with fewer there are next to no products to save


class Way(NamedTuple):
    """run(packed, args, statistics=None or the kernels' own, prologue=likewise) gives the image, and statistics."""

    name: str
    run: Callable[..., Any]
    merged: str = ""  # its name after a norm as its prologue, if it can have one
    leaves_statistics: bool = True


def kernels() -> Any:
    from edm_fast.kernels import conv2d  # late: a missing triton is a reason, not a crash

    return conv2d


def pack(weight: torch.Tensor, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """A weight (O, C, k, k) as the kernels read it; layout "phases": after upsampling by 2."""
    if layout in WINOGRAD_LAYOUTS:
        return kernels().pack_winograd(weight)[WINOGRAD_LAYOUTS.index(layout)]
    return kernels().pack_phases(weight, dtype) if layout == "phases" else kernels().pack(weight, dtype)


def ways(args: Conv2dArgs, norm: GroupNormSiluArgs | None = None) -> list[Way]:
    """Those that can take a call, perhaps after a norm. Winograd is float16 in plans of bfloat16, too: it errs by less;
    and in those of TF32, whose operands have float16's 11 bits, by five times a direct sum.

    A direct 3x3 convolution would normalise each pixel nine times, and once more for each 128 or 256 outputs: as many
    instructions as its matrix units have clocks. Winograd's transform does it 2.25 times.
    """
    coarse = args.x.dtype in (torch.float16, torch.bfloat16) or torch.backends.cudnn.allow_tf32
    outputs, inputs, kernel, _ = args.weight.shape
    nine_times = kernel > 1 and norm is not None and norm.silu
    found = [Way("tail", _library), Way("fused", _direct, "" if nine_times else "merged")]
    if coarse and kernel == 3 and min(outputs, inputs) >= WINOGRAD_CHANNELS:
        whole = not any(size % 4 for size in args.size())  # tiles
        found.append(Way("winograd", _winograd, "merged-winograd", whole))
        by_library = functools.partial(_winograd, library=True)
        found.append(Way("winograd-bmm", by_library, "merged-winograd-bmm", whole))
        if kernels().early_reason(args.x.device) is None:
            early = functools.partial(_winograd, early=True)
            found.append(Way("winograd-early", early, "merged-winograd-early", whole))
    if kernels().boxes_reason(args.x, args.weight, args.pad()) is None:
        found.append(Way("boxes", _in_boxes, leaves_statistics=False))
    return found


def tail(args: Conv2dArgs) -> dict[str, Any]:
    return {"rows": rows(args), "residual": args.residual, "scale": float(args.scale), "clip": args.clip}


def _library(packed: Pack, args: Conv2dArgs, **more: Any) -> Any:
    """torch's convolution and one pass for all that comes after it."""
    return kernels().finish(F.conv2d(args.x, args.weight, padding=args.pad()), **tail(args), **more)


def _direct(packed: Pack, args: Conv2dArgs, **more: Any) -> Any:
    """The op's own kernel."""
    return kernels().forward(args.x, packed(args.weight, "packed"), padding=args.pad(), **tail(args), **more)


def _in_boxes(packed: Pack, args: Conv2dArgs, statistics: None = None) -> Any:
    """The same in Gluon."""
    return kernels().in_boxes(args.x, packed(args.weight, "packed"), padding=args.pad(), **tail(args))


def _winograd(packed: Pack, args: Conv2dArgs, **more: Any) -> Any:
    weights, factors = (packed(args.weight, layout) for layout in WINOGRAD_LAYOUTS)
    return kernels().winograd(args.x, (weights, factors), padding=args.pad(), **tail(args), **more)
