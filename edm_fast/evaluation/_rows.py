"""The rows of a benchmark: ways to run one network, each built from the same weights and given the same inputs.

A row's `build` returns a function of (x, sigma, labels), or raises UserError with the reason it cannot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from edm_fast.checkpoint import DEMO
from edm_fast.evaluation import _peers
from edm_fast.evaluation._networks import accelerated, half
from edm_fast.evaluation._peers import Subject
from edm_fast.sampling import load_sampler


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    build: Callable[[Subject], Callable[..., torch.Tensor]]
    backend: str = "reference"  # of the ops, where they run at all: the peers run plain PyTorch's formulas
    precision: str = "fp32"
    memory_format: str = "contiguous"
    compile: str = "none"
    samples: bool = True  # what is built has a network's attributes, so that a sampler takes it
    trains: bool = False
    device: str = "any"  # "cpu" or "cuda": where it is part of a benchmark
    tf32: bool = False  # products of float32 in 10 bits, on GPUs
    autocast: torch.dtype | None = None
    tuned: bool = False  # sampled by the sampler file of the demo model, which has its own number of steps

    def described(self) -> dict[str, str]:
        return {"precision": self.precision, "memory_format": self.memory_format, "compile": self.compile}


SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def _ours(precision: str, name: str = "", device: str = "any", **limits: float) -> Row:
    """limits: packed_limit and max_error."""
    return Row(
        f"accelerate-{precision}{name}",
        lambda subject: accelerated(subject.net, precision, **limits),
        backend="auto",
        precision="fp32" if precision == "exact" else precision,
        memory_format="own",
        device=device,
    )


def _library(name: str, build: Callable[[Subject], Any], **rest: Any) -> Row:
    """Another inference library, on CPUs."""
    return Row(name, build, memory_format="own", samples=False, device="cpu", **rest)


def _tuned(subject: Subject) -> Any:
    return accelerated(subject.net, load_sampler(DEMO, subject.net).precision)


def _evaluations(subject: Subject) -> Any:
    """accelerate-fp16 whose evaluations are CUDA graphs, but not the steps of a sampler around them."""
    net = accelerated(subject.net, "fp16")
    vars(net.raw)["replayer"] = lambda net: None
    return net


def _half(name: str, dtype: torch.dtype, backend: str) -> Row:
    return Row(name, lambda s: half(s.net, dtype), backend, SHORT[dtype], "channels_last", device="cuda")


def _compiled(name: str, mode: str, dtype: torch.dtype | None = None) -> Row:
    precision, layout = ("fp32", "contiguous") if dtype is None else (SHORT[dtype], "channels_last")
    return Row(
        name,
        lambda subject: _peers.compiled(subject, mode, dtype),
        precision=precision,
        memory_format=layout,
        compile=mode,
        samples=False,
        device="cuda",
        tf32=precision != "fp32",
    )


def _autocast(name: str, dtype: torch.dtype, backend: str, compile: str = "none") -> Row:
    """Of training: weights stay in float32."""
    rest: dict[str, Any] = {"samples": False, "trains": True, "device": "cuda", "tf32": True, "autocast": dtype}
    return Row(name, lambda subject: subject.net, backend, SHORT[dtype], "channels_last", compile, **rest)


def _gpu_rows() -> Iterator[Row]:
    yield Row("reference-tf32", lambda s: s.net, precision="tf32", trains=True, device="cuda", tf32=True)
    for dtype, short in SHORT.items():
        yield _ours("fp16", device="cuda") if short == "fp16" else _ours("tf32", device="cuda")
        yield _half(f"torch-half-{short}", dtype, "reference")
        yield _half(f"fused-half-{short}", dtype, "auto")
        yield _autocast(f"autocast-{short}", dtype, "reference")
        yield _autocast(f"fused-autocast-{short}", dtype, "auto")
    yield _autocast("compile-autocast-bf16", torch.bfloat16, "reference", "default")
    yield Row("accelerate-fp16-evaluations", _evaluations, "auto", "fp16", "own", device="cuda")
    yield _compiled("compile-fp16", "default", torch.float16)
    yield _compiled("compile-max-autotune-fp16", "max-autotune", torch.float16)


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("reference", lambda subject: subject.net, trains=True),
        Row("fused", lambda subject: subject.net, backend="auto", trains=True),
        _ours("exact"),
        _ours("fp32"),
        _ours("fp32", "-unlimited", packed_limit=math.inf),
        _ours("fp32", "-3e-6", "cpu", max_error=3e-6),
        _ours("bf16"),
        Row("tuned", _tuned, backend="auto", memory_format="own", tuned=True, device="cpu"),
        Row("torch-bf16", lambda subject: half(subject.net), precision="bf16", memory_format="channels_last"),
        Row("torch.compile", _peers.compiled, compile="default", trains=True),
        _library("onnxruntime", _peers.onnxruntime, compile="all"),
        _library("openvino", lambda s: _peers.openvino(s, "f32"), compile="latency"),
        _library("openvino-bf16", lambda s: _peers.openvino(s, "bf16"), precision="bf16", compile="latency"),
        _library("ncnn", _peers.ncnn),
        _library("ncnn-split", lambda s: _peers.ncnn(s, split=True)),
        _library("mnn", _peers.mnn),
        _library("opencv", _peers.opencv),
        *_gpu_rows(),
    )
}


def names(device: str) -> tuple[str, ...]:
    """The rows of a benchmark on this kind of device, without those of sampling alone."""
    return tuple(name for name, row in ROWS.items() if row.device in ("any", device) and not row.tuned)
