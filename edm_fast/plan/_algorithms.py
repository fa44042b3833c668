"""The algorithms a convolution may run on, by its precision, and how each is bound to memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from edm_fast import native

# codes of csrc/conv2d.h
DIRECT, WINOGRAD2, WINOGRAD4, INT16, WINOGRAD4_INT16 = 0, 2, 4, 10, 14
WINOGRAD2_UP, WINOGRAD4_UP, WINOGRAD4_UP_INT16 = 22, 24, 34
WINOGRAD2_PLAIN, WINOGRAD4_PLAIN, WINOGRAD4X8_PLAIN, WINOGRAD2_UP_PLAIN, WINOGRAD4_UP_PLAIN = 102, 104, 148, 122, 124
PAIRS = 1000  # added to a code
NAMES = {
    DIRECT: "direct",
    WINOGRAD2: "winograd2",
    WINOGRAD4: "winograd4",
    INT16: "int16",
    WINOGRAD4_INT16: "winograd4-int16",
    WINOGRAD2_UP: "winograd2-up",
    WINOGRAD4_UP: "winograd4-up",
    WINOGRAD4_UP_INT16: "winograd4-up-int16",
    WINOGRAD2_PLAIN: "winograd2-plain",
    WINOGRAD4_PLAIN: "winograd4-plain",
    WINOGRAD4X8_PLAIN: "winograd4x8-plain",
    WINOGRAD2_UP_PLAIN: "winograd2-up-plain",
    WINOGRAD4_UP_PLAIN: "winograd4-up-plain",
}
# that take products in pairs of terms
PAIRED = (PAIRS + DIRECT, *(PAIRS + a for a in NAMES if a > 100))
NAMES |= {a: f"{NAMES[a - PAIRS]}-paired" for a in PAIRED}
# that read the weight as the network holds it, and pack nothing
PLAIN = tuple(a for a in NAMES if a % PAIRS > 100)
# of these, those that are packed nothing but what balances the channels of image and weight
BALANCED = tuple(a for a in PLAIN if a in PAIRED)
# with the doubling of the image before it
MERGED = tuple(a for a in NAMES if a % PAIRS % 100 in (WINOGRAD2_UP, WINOGRAD4_UP, WINOGRAD4_UP_INT16))
INTEGERS = (INT16, WINOGRAD4_INT16, WINOGRAD4_UP_INT16)
# the error of F(2x2) is that of torch or less, that of F(4x4) up to six times torch's best, that of F(4x8) thirty;
# pairs add up to a third (benchmarks/NOTES.md), which for F(2x2) of a doubled image is more than twice torch's;
# integers of 16 bits keep more of a layer's input than bfloat16 does, at the speed of it
ALLOWED: dict[str, tuple[int, ...]] = {
    "exact": (
        *(DIRECT, WINOGRAD2, WINOGRAD2_UP, WINOGRAD2_PLAIN, WINOGRAD2_UP_PLAIN),
        *(PAIRS + DIRECT, PAIRS + WINOGRAD2_PLAIN),
    ),
    "fp32": tuple(a for a in NAMES if a not in INTEGERS),
    "bf16": tuple(NAMES),
}
FEWEST_PAIRED = 48  # channels: with fewer there are no pairs, see csrc/cpu/_pairs.h


@dataclasses.dataclass(frozen=True)
class Shape:
    """A convolution: images (n, channels, h, w) to `outputs` channels; `doubled`: of images whose pixels are each
    repeated in a square before it."""

    n: int
    channels: int
    h: int
    w: int
    outputs: int
    kernel: int
    padding: int
    doubled: bool = False

    def after_doubling(self) -> Shape:
        """The convolution alone."""
        return dataclasses.replace(self, h=2 * self.h, w=2 * self.w, doubled=False) if self.doubled else self

    def output(self) -> tuple[int, int, int, int]:
        own, grow = self.after_doubling(), 2 * self.padding - self.kernel + 1
        return own.n, own.outputs, own.h + grow, own.w + grow


def fastest(seconds: Mapping[int, float]) -> int:
    return min(seconds, key=lambda a: seconds[a])


def packed_size(shape: Shape, algorithm: int) -> int:
    """Floats of the packed weight."""
    sizes = dict(outputs=shape.outputs, inputs=shape.channels, kernel=shape.kernel)
    return native.lib.conv2d_packed_size(algorithm=algorithm, **sizes)


def _sizes(shape: Shape, algorithm: int) -> dict[str, int]:
    """Arguments of the native convolution and of the size of its workspace."""
    return dict(
        algorithm=algorithm,
        n=shape.n,
        h=shape.h,
        w=shape.w,
        inputs=shape.channels,
        kernel=shape.kernel,
        padding=shape.padding,
    )


def workspace(shape: Shape, algorithm: int) -> int:
    """Floats of memory that a call needs."""
    return native.lib.conv2d_fwd_workspace(**_sizes(shape, algorithm))


def bind(shape: Shape, algorithm: int, **arguments: Any) -> Callable[[int], None]:
    """The native convolution with its arguments set: `arguments` are those that the shape does not say."""
    return native.bind("conv2d_fwd_cpu", **_sizes(shape, algorithm), outputs=shape.outputs, **arguments)


def fits(algorithm: int, shape: Shape) -> bool:
    """Whether the kernels have this algorithm for the shape."""
    if packed_size(shape, algorithm) < 0 or (algorithm in MERGED and not (shape.doubled and shape.padding == 1)):
        return False
    if algorithm in PAIRED and (shape.channels < FEWEST_PAIRED or not native.has_pairs()):
        return False
    if algorithm == PAIRS + DIRECT and shape.padding:
        return False
    return algorithm not in INTEGERS or (shape.channels <= 4096 and shape.kernel == 2 * shape.padding + 1)


def bind_upfirdn(
    y: torch.Tensor, x: torch.Tensor, f: torch.Tensor, factor: int, up: bool, padding: int
) -> Callable[[int], None]:
    """The native resampling of x (N, C, H, W) to y, channels last, with its arguments set."""
    assert f.ndim == 2 and f.shape[0] == f.shape[1]
    (to, _), (source, pitch) = native.window(y), native.window(x)
    n, c, h, w = x.shape
    return native.bind(
        "upfirdn_fwd_cpu",
        y=to,
        x=source,
        f=f.data_ptr(),
        n=n,
        c=c,
        h=h,
        w=w,
        out_h=y.shape[2],
        out_w=y.shape[3],
        taps=f.shape[0],
        factor=factor,
        padding=padding,
        gain=float(factor**2 if up else 1),
        up=up,
        channels_last=True,
        x_pitch=pitch,
    )
