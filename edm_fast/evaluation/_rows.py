"""The rows of a benchmark: ways to run one network, each built from the same weights and given the same inputs.

A row's `build` returns a function of (x, sigma, labels), or raises UserError with the reason it cannot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from edm_fast.evaluation import _peers
from edm_fast.evaluation._networks import accelerated, half
from edm_fast.evaluation._peers import Subject


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

    def described(self) -> dict[str, str]:
        return {"precision": self.precision, "memory_format": self.memory_format, "compile": self.compile}


SMALL = 1.9  # packed_limit of the row that saves memory


def _ours(precision: str, memory_format: str = "own", limit: float | None = None) -> Row:
    return Row(
        f"accelerate-{precision}" + ("" if limit is None else "-small"),
        lambda subject: accelerated(subject.net, precision, limit),
        backend="auto",
        precision="bf16" if precision == "bf16" else "fp32",
        memory_format=memory_format,
    )


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("reference", lambda subject: subject.net, trains=True),
        Row("fused", lambda subject: subject.net, backend="auto", trains=True),
        _ours("exact"),
        _ours("fp32"),
        _ours("fp32", limit=SMALL),
        _ours("bf16"),
        Row("torch-bf16", lambda subject: half(subject.net), precision="bf16", memory_format="channels_last"),
        Row("torch.compile", _peers.compiled, compile="default"),
        Row("onnxruntime", _peers.onnxruntime, memory_format="own", compile="all", samples=False),
        Row("openvino", lambda s: _peers.openvino(s, "f32"), memory_format="own", compile="latency", samples=False),
        Row(
            "openvino-bf16",
            lambda s: _peers.openvino(s, "bf16"),
            precision="bf16",
            memory_format="own",
            compile="latency",
            samples=False,
        ),
    )
}
