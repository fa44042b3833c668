"""The native conv2d as plans call it: any algorithm and instruction set, images that are windows of wider ones.

Everything around the windows, and what is to be written, is NaN: reading or leaving out too much shows.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from edm_fast import native

ALGORITHMS = tuple(native.ALGORITHMS.values())
PAIRED, INTEGERS = [a for a in ALGORITHMS if a.paired], [a for a in ALGORITHMS if a.int16]
UNPACKED = [a for a in ALGORITHMS if not a.packed]


def variant(algorithm: native.Algorithm, **fields: bool) -> native.Algorithm | None:
    """The algorithm that differs from this one by `packed`, `paired` or `int16`, if there is one."""
    want = algorithm._replace(**fields)
    return next((a for a in ALGORITHMS if a == want._replace(name=a.name, error=a.error, place=a.place)), None)


def layers(algorithm: native.Algorithm) -> list[tuple[int, int]]:
    """(kernel, padding) of the layers that the algorithm computes, of few channels."""

    def workspace(kernel: int, padding: int) -> int:
        sizes = dict(algorithm=algorithm, n=1, h=4, w=4, inputs=1, kernel=kernel, padding=padding)
        return native.lib.conv2d_fwd_workspace(**sizes)

    sizes = [(kernel, padding) for kernel in (1, 3) for padding in range(6)]
    return [size for size in sizes if workspace(*size) >= 0]


KINDS = [(a, k) for a in ALGORITHMS for k in (1, 3) if (k, k // 2) in layers(a)]  # images keep their size

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def isas() -> list[str]:
    return list(filter(native.available, native.ISAS))


def wide(values: torch.Tensor, margin: tuple[int, int] = (0, 0)) -> tuple[torch.Tensor, torch.Tensor]:
    """(window, whole): a copy of an image in a wider one, channels last, with `margin` channels of NaN beside it."""
    n, c, h, w = values.shape
    whole = torch.full((n, h, w, c + sum(margin)), math.nan).permute(0, 3, 1, 2)
    window = whole[:, margin[0] : margin[0] + c]
    window.copy_(values)
    return window, whole


def pack(weight: torch.Tensor, algorithm: native.Algorithm, transposed: bool = False) -> torch.Tensor:
    outputs, inputs, k, _ = weight.shape
    sizes = dict(algorithm=algorithm, outputs=outputs, inputs=inputs, kernel=k, transposed=transposed)
    packed = torch.full((native.lib.conv2d_packed_size(**sizes),), math.nan)
    native.call("conv2d_pack_cpu", packed=packed, weight=weight.contiguous(), **sizes)
    return packed


def seen(x: torch.Tensor, algorithm: native.Algorithm) -> torch.Tensor:
    """The image that is convolved: x, or x with each pixel repeated in a square."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if algorithm.doubled else x


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    algorithm: native.Algorithm,
    rows: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: float = 1.0,
    padding: int | None = None,
    *,
    transposed: bool = False,
    affine: torch.Tensor | None = None,
    silu: bool = False,
    threads: int = 2,
    margin: tuple[int, int] = (0, 0),
) -> torch.Tensor:
    """(weight * x + rows + residual) scale on one algorithm, x as it is `seen`, or its norm, in windows of images with
    `margin` more channels."""
    outputs, inputs, k, _ = weight.shape
    outputs, inputs = (inputs, outputs) if transposed else (outputs, inputs)
    pad = k // 2 if padding is None else padding
    n, _, h, w = x.shape
    size = [length + 2 * pad - k + 1 for length in seen(x, algorithm).shape[2:]]
    y, whole = wide(torch.full((n, outputs, *size), math.nan), margin)
    source, _ = wide(x, margin)
    other = None if residual is None else wide(residual, margin)[0]
    bias = None if rows is None else torch.cat([rows.reshape(-1), torch.full((64,), math.nan)])
    balance = pack(weight, algorithm, transposed) if algorithm.paired else None
    packed = pack(weight, algorithm, transposed) if algorithm.packed else weight.contiguous()
    sizes = dict(algorithm=algorithm, n=n, h=h, w=w, inputs=inputs, kernel=k, padding=pad)
    workspace = torch.full((native.lib.conv2d_fwd_workspace(**sizes),), math.nan)
    (to, to_pitch), (of, of_pitch) = native.window(y), native.window(source)
    address, pitch = (0, outputs) if other is None else native.window(other)
    native.bind(
        "conv2d_fwd_cpu",
        **sizes,
        y=to,
        x=of,
        weight=packed.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        residual=address,
        outputs=outputs,
        bias_rows=0 if rows is None else rows.shape[0],
        y_pitch=to_pitch,
        x_pitch=of_pitch,
        residual_pitch=pitch,
        scale=scale,
        workspace=workspace.data_ptr(),
        transposed=transposed and not algorithm.packed,
        affine=None if affine is None else affine.data_ptr(),
        silu=silu,
        balance=None if balance is None else balance.data_ptr(),
    )(threads)
    beside = [whole[:, : margin[0]], whole[:, margin[0] + outputs :]]
    assert all(part.isnan().all() for part in beside), "channels beside the output were written"
    return y.clone()


def normalised(x: torch.Tensor, silu: bool, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """group_norm_silu of x with some parameters, scales and shifts, and the numbers by which a convolution takes it."""
    n, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    y, affine, stats = torch.empty_like(x), torch.full((n, 3, c), math.nan), torch.empty(3, n, groups)
    parameters = {
        "weight": torch.linspace(0.5, 2, c),
        "bias": torch.linspace(-1, 1, c),
        "scale": torch.linspace(-0.5, 1, n * c),
        "shift": torch.ones(c),
    }
    sizes = dict(n=n, c=c, space=h * w, groups=groups, scale_rows=n, shift_rows=1, x_pitch=c)
    for result in ({"y": y}, {"affine": affine}):
        tensors = {"x": x, "stats": stats, **parameters, **result}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        rest = dict(eps=1e-5, silu=silu, channels_last=True)
        native.bind("group_norm_silu_fwd_cpu", **addresses, **sizes, **rest)(2)
    return y, affine


def defined(x, weight, rows=None, residual=None, scale=1.0, padding=None, dtype=torch.float64):
    """The formula on plain torch, in float64."""
    x, weight = x.to(dtype), weight.to(dtype)
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2 if padding is None else padding)
    if rows is not None:
        y = y + rows.to(dtype)[:, :, None, None]
    if residual is not None:
        y = y + residual.to(dtype)
    return y * scale


def budget(algorithm, x, weight, *tail, **kwargs) -> float:
    """The largest error allowed, of up to 1024 channels, with a floor of four roundings of the largest value.

    Direct and F(2x2): twice the error of plain torch; F(4x4): eight times; F(4x8): forty times. Integers: what rounding
    the operands to bfloat16 costs, half of that without a transform. x is the image as it is seen.
    """
    exact = defined(x, weight, *tail, **kwargs)
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    if algorithm.int16:
        rounded = defined(x.bfloat16(), weight.bfloat16(), *tail, **kwargs)
        return (1.0 if algorithm.rows > 1 else 0.5) * (rounded - exact).abs().max().item() + floor
    plain = defined(x, weight, *tail, **kwargs, dtype=torch.float32)
    factor = {1: 2.0, 2: 2.0, 4: 8.0, 8: 40.0}[algorithm.columns]
    return factor * (plain - exact).abs().max().item() + floor


def inputs(n, c, h, w, out, k, padding=None, rows=0, residual=False, scale=1.0, *, double=False):
    """Arguments (x, weight, rows, residual, scale, padding) for `convolve` and, but for a doubling, `defined`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    pad = k // 2 if padding is None else padding
    size = [length * (2 if double else 1) + 2 * pad - k + 1 for length in (h, w)]
    x, weight = draw(n, c, h, w), draw(out, c, k, k) / math.sqrt(c * k * k)
    bias = draw(rows, out) if rows else None
    return x, weight, bias, draw(n, out, *size) if residual else None, scale, padding
