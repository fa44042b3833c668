"""Case tables of the ops, and the error of a result: one table for tests, benchmarks, `verify` and `doctor`.

A case is a name, a builder and a mark: builder(make) -> (args, kwargs), where make(*shape, layout=..., scale=...) draws
a tensor. Cases marked real are layer shapes of the published networks; `verify` measures and benchmarks time those.
Imports torch only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

Make = Callable[..., torch.Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]
# of a 3x3 convolution of 256 channels by Winograd's F(4x4, 3x3) in float16: rms, in that of its result
WINOGRAD_ERROR = 2e-3
LAYOUTS = ("contiguous", "channels_last", "strided")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[Make], Call]
    real: bool = False

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Call:
        """Arguments for one call; the same numbers for every dtype and device, up to rounding."""
        generator = torch.Generator().manual_seed(seed)

        def make(*shape: int, layout: str = "contiguous", scale: float = 1.0) -> torch.Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return laid_out(values.to(device=device, dtype=dtype), layout)

        return self.build(make)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x in a memory layout: "contiguous", "channels_last", or "strided" (every second element of a wider tensor)."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "strided":
        wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
        wide[..., ::2] = x
        return wide[..., ::2]
    return x


def _filter(make: Make, taps: list[int]) -> torch.Tensor:
    f = torch.tensor(taps, dtype=torch.float64)
    return (torch.outer(f, f) / f.sum() ** 2).to(make(1))


def _upfirdn(shape: tuple[int, ...], taps: list[int], layout: str = "contiguous", **kwargs: int) -> Callable:
    return lambda make: ((make(*shape, layout=layout), _filter(make, taps)), kwargs)


def _upfirdn_cases() -> Iterator[Case]:
    for taps, padding in (([1, 1], 0), ([1, 3, 3, 1], 1)):
        k = len(taps)
        for layout in ("contiguous", "channels_last"):
            down, up = {"down": 2, "padding": padding}, {"up": 2, "padding": padding}
            for size in (32, 16):
                half = size // 2
                name = f"cifar10_k{k}_{layout}"
                yield Case(f"{name}_{size}_to_{half}", _upfirdn((8, 256, size, size), taps, layout, **down), True)
                yield Case(f"{name}_{half}_to_{size}", _upfirdn((8, 256, half, half), taps, layout, **up), True)
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


def _solver(
    shape: tuple[int, ...], *, slope: bool = False, terms: int = 0, noise: bool = False, **rest: Any
) -> Callable:
    layout = rest.pop("layout", "contiguous")

    def build(make: Make) -> Call:
        def draw() -> torch.Tensor:
            return make(*shape, layout=layout)

        args = (draw(), draw(), draw()) if slope else (draw(),)
        kwargs = {"terms": [draw() for _ in range(terms)], "weights": [0.3 - 0.17 * k for k in range(terms)], **rest}
        return args, {**kwargs, "noise": draw()} if noise else kwargs

    return build


def _solver_update_cases() -> Iterator[Case]:
    big, odd = (64, 3, 32, 32), (3, 5, 7, 9)
    heun: dict[str, Any] = {"slope": True, "terms": 1, "t": 0.3, "h": -0.21, "w": 0.5}
    yield Case("euler", _solver(big, slope=True, t=0.37, h=-0.12), True)
    yield Case("heun", _solver(big, **heun), True)
    yield Case("churn", _solver(big, noise=True, c=0.71), True)
    yield Case("multistep_6", _solver(big, terms=6, a=0.83, h=0.11), True)
    yield Case("general_schedule", _solver(odd, slope=True, p=1.7, q=0.31, h=0.013))
    yield Case("factors_of_1", _solver(odd, slope=True, terms=2, noise=True, c=1.0))
    yield Case("everything", _solver(odd, slope=True, terms=6, noise=True, c=0.2, a=0.9, h=0.1, t=0.7, p=3.0, q=2.0))
    yield Case("terms_of_a_step", _solver(odd, terms=8, a=0.5))
    yield Case("copy", _solver(odd, a=2.5))
    yield Case("channels_last", _solver(odd, layout="channels_last", **heun))
    for shape in ((), (1,), (1023,), (4097,), (0, 3, 4, 4)):
        yield Case(f"shape_{shape}", _solver(shape, noise=True, c=0.3, **heun))


def _norm(shape: tuple[int, ...], groups: int, layout: str = "contiguous", adaptive: bool = False, **kwargs: Any):
    def build(make: Make) -> Call:
        n, c = shape[:2]
        rest = {"scale": make(n, c), "shift": make(n, c), **kwargs} if adaptive else kwargs
        return (make(*shape, layout=layout), make(c), make(c), groups), rest

    return build


def _group_norm_silu_cases() -> Iterator[Case]:
    for channels, size in ((256, 32), (512, 16), (256, 8)):
        yield Case(f"cifar10_{channels}_{size}", _norm((8, channels, size, size), 32, eps=1e-6), True)
    yield Case("adm_384_16", _norm((2, 384, 16, 16), 32, adaptive=True), True)
    for layout in LAYOUTS:
        yield Case(f"odd_{layout}", _norm((3, 12, 5, 7), 4, layout))
        yield Case(f"adaptive_{layout}", _norm((3, 12, 5, 7), 4, layout, adaptive=True, silu=False))
    yield Case("one_pixel", _norm((2, 8, 1, 1), 2))
    yield Case("no_space", _norm((4, 8), 4))
    yield Case("batch_0", _norm((0, 8, 4, 4), 2))


def _attention(n: int, c: int, h: int, w: int, heads: int, **kwargs: Any) -> Callable:
    return lambda make: ((make(n, 3 * heads * c, h, w, **kwargs), heads), {})


def _attention_cases() -> Iterator[Case]:
    def case(name: str, *sizes: int, real: bool = False, **kwargs: Any) -> Case:
        return Case(name, _attention(*sizes, **kwargs), real)

    yield case("cifar10_16", 8, 256, 16, 16, 1, real=True)
    yield case("cifar10_8", 8, 256, 8, 8, 1, real=True)
    yield case("adm_32", 2, 64, 32, 32, 6, real=True)
    yield case("adm_16", 2, 64, 16, 16, 9, real=True)
    yield case("adm_8", 2, 64, 8, 8, 12, real=True)
    for layout in LAYOUTS:
        yield case(f"odd_{layout}", 2, 5, 3, 7, 3, layout=layout)
        yield case(f"wide_{layout}", 1, 131, 5, 7, 1, layout=layout)
        yield case(f"many_keys_{layout}", 1, 7, 19, 17, 2, layout=layout)
        yield case(f"large_logits_{layout}", 2, 16, 6, 6, 2, layout=layout, scale=12.0)  # e^x of them overflows
    yield case("one_channel", 2, 1, 4, 5, 3)
    yield case("one_pixel", 2, 4, 1, 1, 2)
    yield case("batch_0", 0, 4, 3, 3, 2)


def _conv(shape: tuple[int, ...], out: int, k: int, *tail: str, layout: str = "contiguous", **kwargs: Any) -> Callable:
    def build(make: Make) -> Call:
        n, c, h, w = shape
        tensors = {
            "bias": lambda: make(out),
            "emb": lambda: make(n, out),
            "residual": lambda: make(n, out, h, w, layout=layout),
        }
        weight = make(out, c, k, k, scale=1 / math.sqrt(c * k * k))
        return (make(*shape, layout=layout), weight), {**{name: tensors[name]() for name in tail}, **kwargs}

    return build


def _conv2d_cases() -> Iterator[Case]:
    half = math.sqrt(0.5)
    yield Case("cifar10_32", _conv((8, 256, 32, 32), 256, 3, "bias"), True)
    yield Case("cifar10_16_residual", _conv((8, 256, 16, 16), 256, 3, "bias", "residual", scale=half), True)
    yield Case("cifar10_8", _conv((8, 256, 8, 8), 256, 3, "bias"), True)
    yield Case("cifar10_16_skip", _conv((8, 512, 16, 16), 256, 3, "bias"), True)
    yield Case("cifar10_16_qkv", _conv((8, 256, 16, 16), 768, 1, "bias"), True)
    yield Case("cifar10_32_skip", _conv((8, 512, 32, 32), 256, 1, "bias"), True)
    for channels, size in ((192, 64), (384, 32), (576, 16), (768, 8)):
        tail = ("bias", "residual")
        yield Case(f"adm_{channels}_{size}", _conv((1, channels, size, size), channels, 3, *tail), True)
    yield Case("demo_32_32", _conv((8, 32, 32, 32), 32, 3, "bias"), True)
    yield Case("demo_64_16", _conv((8, 64, 16, 16), 64, 3, "bias", "residual", scale=half), True)
    for layout in LAYOUTS:
        yield Case(f"all_{layout}", _conv((2, 5, 7, 9), 6, 3, "bias", "emb", "residual", layout=layout, scale=half))
    yield Case("k1", _conv((2, 5, 7, 9), 4, 1))
    yield Case("padding_0", _conv((2, 3, 6, 5), 4, 3, "bias", padding=0))
    yield Case("batch_0", _conv((0, 3, 6, 5), 4, 3, "bias"))


CASES: dict[str, list[Case]] = {
    "upfirdn": list(_upfirdn_cases()),
    "solver_update": list(_solver_update_cases()),
    "group_norm_silu": list(_group_norm_silu_cases()),
    "attention": list(_attention_cases()),
    "conv2d": list(_conv2d_cases()),
}


# one quick call for each op, shaped like a layer but smaller
SMALL: dict[str, Case] = {
    "upfirdn": Case("small", _upfirdn((2, 32, 8, 8), [1, 3, 3, 1], down=2, padding=1)),
    "group_norm_silu": Case("small", _norm((2, 32, 8, 8), 8)),
    "attention": Case("small", _attention(2, 32, 8, 8, 1)),
    "conv2d": Case("small", _conv((2, 32, 8, 8), 32, 3, "bias", "residual", scale=math.sqrt(0.5))),
    "solver_update": Case("small", _solver((2, 32, 8, 8), slope=True, terms=1, t=2.5, h=-0.4)),
}


def _large_cases(n: int = 64) -> dict[str, list[Case]]:
    """Layers of CIFAR-10 DDPM++ and NCSN++ and of ADM, channels last, at a batch that fills a GPU."""
    last = "channels_last"
    norms = [(128, 32), (256, 32), (256, 16), (512, 16), (256, 8)]  # channels, height and width
    heads = [(256, 16, 1), (64, 32, 6), (64, 16, 9), (64, 8, 12)]  # channels of a head, height and width, heads
    convolutions = [(256, 32, 256, 3), (256, 16, 256, 3), (512, 16, 256, 1)]  # the last two: outputs, kernel
    resampled = [("down", 32), ("up", 16)]
    return {
        "solver_update": [
            Case(f"heun_{n}x3x32x32", _solver((n, 3, 32, 32), slope=True, terms=1, t=0.3, h=-0.21, w=0.5))
        ],
        "group_norm_silu": [Case(f"{n}x{c}x{s}x{s}", _norm((n, c, s, s), 32, last, eps=1e-6)) for c, s in norms],
        "attention": [Case(f"{n}x{h}x{c}x{s * s}", _attention(n, c, s, s, h, layout=last)) for c, s, h in heads],
        "conv2d": [
            Case(f"{n}x{c}x{s}x{s} to {out}, {k}x{k}", _conv((n, c, s, s), out, k, "bias", layout=last))
            for c, s, out, k in convolutions
        ],
        "upfirdn": [
            Case(
                f"{n}x256x{s}x{s} {way}, {len(taps)} taps",
                _upfirdn((n, 256, s, s), taps, last, padding=len(taps) // 2 - 1, **{way: 2}),
            )
            for taps in ([1, 1], [1, 3, 3, 1])
            for way, s in resampled
        ],
    }


LARGE: dict[str, list[Case]] = _large_cases()


def cases(op: str, real: bool | None = None) -> list[Case]:
    """The cases of an op: all, the real ones (True), or the small ones (False)."""
    return [case for case in CASES[op] if real is None or case.real == real]


def widened(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The same call in float64, or another precision."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        items = [widened(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return {key: widened(item, dtype) for key, item in value.items()} if isinstance(value, dict) else value


def outputs(result: Any) -> list[torch.Tensor]:
    """The tensors of an op's result."""
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far one output lies from the reference."""

    error: float  # largest, against the reference in float64
    budget: float  # the largest error allowed
    size: float  # largest value
    ulp: float  # largest distance from the reference in the same dtype, in units in the last place
    identical: bool  # to the reference in the same dtype, bit for bit

    @property
    def ok(self) -> bool:
        return self.error <= self.budget  # false for nan, too


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The most numbers of their dtype that lie between two values in the same place; infinity if only one is nan."""
    if a.numel() == 0:
        return 0.0
    if not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    # the bits of a float without its sign count the numbers from zero
    m, n = (_bits(t.abs()).to(torch.int64) for t in (a, b))
    distance = torch.where(a.signbit() == b.signbit(), (m - n).abs().double(), m.double() + n.double())
    return distance.masked_fill(a.isnan(), 0).max().item()


def expected(reference: Callable[..., Any], call: Call) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The outputs of the reference: in the dtype of the inputs, and in float64."""
    args, kwargs = call
    plain = outputs(reference(*args, **kwargs))
    if all(t.dtype == torch.float64 for t in plain):
        return plain, plain
    return plain, outputs(reference(*widened(args), **widened(kwargs)))


def distances(result: Any, plain: list[torch.Tensor], exact: list[torch.Tensor], factor: float = 2.0) -> list[Distance]:
    """For each output that is not empty, how far `result` is from what `expected` gave.

    Budget: `factor` times the error of the reference in the dtype of the inputs, and a floor of four roundings of the
    largest value.
    """
    got = outputs(result)
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in plain], "shapes or dtypes differ"
    table = []
    for g, p, e in zip(got, plain, exact):
        if e.numel() == 0:
            continue
        size = e.abs().max().item()
        budget = factor * (p - e).abs().max().item() + 4 * torch.finfo(g.dtype).eps * size
        identical = torch.equal(_bits(g), _bits(p))
        table.append(Distance((g - e).abs().max().item(), budget, size, ulp_distance(g, p), identical))
    return table
