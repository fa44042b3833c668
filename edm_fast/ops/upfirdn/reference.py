"""The definition of upfirdn: its record of arguments, what it refuses, and the formula in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.ops import _check
from edm_fast.ops._cases import LAYOUTS, Case, Make


class UpfirdnArgs(NamedTuple):
    x: torch.Tensor
    f: torch.Tensor
    up: int = 1
    down: int = 1
    padding: int = 0

    def size(self) -> list[int]:
        """Height and width of the result."""
        return [output_size(n, self.f.shape[0], self.up, self.down, self.padding) for n in self.x.shape[2:]]


def output_size(size: int, taps: int, up: int, down: int, padding: int) -> int:
    """Output length along one axis."""
    return (size - 1) * up + taps - 2 * padding if up > 1 else (size + 2 * padding - taps) // down + 1


def reference(args: UpfirdnArgs) -> torch.Tensor:
    x, f, up, down, padding = args
    channels, f = x.shape[1], f.to(x.dtype)
    weight = (f if up == 1 else f * float(up**2))[None, None].tile([channels, 1, 1, 1])  # (C, 1, K, K)
    if up > 1:
        return F.conv_transpose2d(x, weight, None, up, padding, 0, channels)
    return F.conv2d(x, weight, None, down, padding, 1, channels)


def check(args: UpfirdnArgs) -> None:
    x, f, up, down, padding = args
    _check.floating("upfirdn", "x", x, 4)
    _check.floating("upfirdn", "f", f, 2)
    if f.shape[0] != f.shape[1]:
        raise UserError(f"upfirdn: f has shape {tuple(f.shape)}; expected a square filter")
    if up < 1 or down < 1 or (up > 1 and down > 1) or padding < 0:
        raise UserError(f"upfirdn: up={up}, down={down}, padding={padding}; expected one factor >= 1 and the other 1")
    if min(*args.size(), *x.shape[2:]) < 1:
        raise UserError(f"upfirdn: images of {tuple(x.shape[2:])} are too small for a filter of {f.shape[0]} taps")


def like(args: UpfirdnArgs) -> torch.Tensor:
    x = args.x
    return torch.empty((*x.shape[:2], *args.size()), dtype=x.dtype, device=x.device)


def _filter(make: Make, taps: list[int]) -> torch.Tensor:
    f = torch.tensor(taps, dtype=torch.float64)
    return (torch.outer(f, f) / f.sum() ** 2).to(make(1))


def _upfirdn(shape: tuple[int, ...], taps: list[int], layout: str = "contiguous", **kwargs: int) -> Callable:
    return lambda make: ((make(*shape, layout=layout), _filter(make, taps)), kwargs)


def cases() -> Iterator[Case]:
    for taps, padding in (([1, 1], 0), ([1, 3, 3, 1], 1)):
        k = len(taps)
        for layout in ("contiguous", "channels_last"):
            down, up = {"down": 2, "padding": padding}, {"up": 2, "padding": padding}
            for size in (32, 16):
                half = size // 2
                name = f"cifar10_k{k}_{layout}"
                yield Case(f"{name}_{size}_to_{half}", _upfirdn((8, 256, size, size), taps, layout, **down), "real")
                yield Case(f"{name}_{half}_to_{size}", _upfirdn((8, 256, half, half), taps, layout, **up), "real")
        for layout in LAYOUTS:
            for h, w in ((7, 9), (2, 33), (1, 1), (12, 6)):
                for extra in range(3):
                    for kwargs in ({"down": 2}, {"up": 2}):
                        p = padding + extra
                        if min(h, w) + 2 * p < k or ("up" in kwargs and 2 * (min(h, w) - 1) + k - 2 * p < 1):
                            continue
                        name = f"k{k}_{next(iter(kwargs))}_{layout}_{h}x{w}_p{p}"
                        yield Case(name, _upfirdn((2, 5, h, w), taps, layout, padding=p, **kwargs))
    for kwargs in ({"down": 3}, {"up": 3}, {"padding": 1}):
        yield Case(f"k3_general_{kwargs}", _upfirdn((2, 3, 7, 8), [1, 2, 1], "contiguous", **kwargs))
        yield Case(f"k6_general_{kwargs}", _upfirdn((1, 3, 9, 8), [1, 5, 10, 10, 5, 1], "channels_last", **kwargs))
    yield Case("tall_blocks", _upfirdn((1, 2, 301, 128), [1, 3, 3, 1], padding=1, down=2))
    yield Case("batch_0", _upfirdn((0, 3, 8, 8), [1, 1], down=2))
    yield Case("small", _upfirdn((2, 32, 8, 8), [1, 3, 3, 1], down=2, padding=1), "small")
    for taps in ([1, 1], [1, 3, 3, 1]):
        for way, size in (("down", 32), ("up", 16)):
            kwargs = {way: 2, "padding": len(taps) // 2 - 1}
            large = _upfirdn((64, 256, size, size), taps, "channels_last", **kwargs)
            yield Case(f"64x256x{size}x{size} {way}, {len(taps)} taps", large, "large")
