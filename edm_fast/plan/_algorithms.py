"""The algorithms a convolution may run on, by its precision, and the memory of each."""

from __future__ import annotations

import dataclasses

from edm_fast import native
from edm_fast.native import Algorithm

ERROR_CLASSES = "exact", "fp32", "bf16"  # also the precisions; each allows its own class and those before it
ALLOWED = {
    precision: tuple(a for a in native.ALGORITHMS.values() if a.error in ERROR_CLASSES[: place + 1])
    for place, precision in enumerate(ERROR_CLASSES)
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

    def adjoint(self) -> Shape:
        """The convolution that takes the gradient of the result to that of the image."""
        n, outputs, h, w = self.output()
        return Shape(n, outputs, h, w, self.channels, self.kernel, self.kernel - 1 - self.padding)

    def output(self) -> tuple[int, int, int, int]:
        own, grow = self.after_doubling(), 2 * self.padding - self.kernel + 1
        return own.n, own.outputs, own.h + grow, own.w + grow


def packed_size(shape: Shape, algorithm: Algorithm) -> int:
    """Floats of the packed weight."""
    sizes = dict(outputs=shape.outputs, inputs=shape.channels, kernel=shape.kernel)
    return native.lib.conv2d_packed_size(algorithm=algorithm, **sizes)


def workspace(shape: Shape, algorithm: Algorithm) -> int:
    """Floats of memory that a call needs; -1 if the algorithm does not compute such a layer."""
    sizes = dict(n=shape.n, h=shape.h, w=shape.w, inputs=shape.channels, kernel=shape.kernel, padding=shape.padding)
    return native.lib.conv2d_fwd_workspace(algorithm=algorithm, **sizes)


def fits(algorithm: Algorithm, shape: Shape) -> bool:
    """Whether the kernels have this algorithm for the shape."""
    if algorithm.paired and (shape.channels < FEWEST_PAIRED or not native.has_pairs()):
        return False
    return workspace(shape, algorithm) >= 0 and (shape.doubled or not algorithm.doubled)
