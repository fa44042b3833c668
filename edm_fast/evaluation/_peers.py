"""Other ways to make a network fast: torch.compile, ONNX Runtime, OpenVINO. What is not installed is a reason."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from edm_fast.backend import use_backend
from edm_fast.errors import BROKEN, UserError
from edm_fast.evaluation._networks import Inputs, half, inputs

SIGMA = 0.5  # of every timed evaluation; the time does not depend on it


class Subject:
    """A network and the inputs it is timed with. What several peers need is made once: the ONNX file."""

    def __init__(self, net: Any, batch: int, folder: str | Path) -> None:
        self.net = net
        self.batch = batch
        self.device: torch.device = next(net.parameters()).device
        self.example: Inputs = inputs(net, batch, SIGMA, device=self.device)
        self.folder = Path(folder)
        self.compilers = 0  # functions of torch.compile made for this subject

    @functools.cached_property
    def onnx(self) -> Path:
        """The whole denoiser, with this batch, as an ONNX file beside its weights."""
        import onnx  # noqa: F401  (a missing package is the reason)
        import onnxscript  # noqa: F401

        path = self.folder / "network.onnx"
        with torch.no_grad(), use_backend("reference"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(self.net, self.arguments, path, dynamo=True, verbose=False)
        return path

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        return tuple(value for value in self.example if value is not None)


@contextlib.contextmanager
def subject(net: Any, batch: int) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="edm-fast-") as folder:
        yield Subject(net, batch, folder)


def _reasons(build: Callable[..., Any]) -> Callable[..., Any]:
    """A peer that fails, for whatever cause, is a row without numbers and must not end the benchmark."""

    @functools.wraps(build)
    def run(*args: Any) -> Any:
        try:
            return build(*args)
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"{error.name} is not installed" if error.name else str(error)) from error
        except BROKEN as error:
            first = next(iter(str(error).strip().splitlines()), "")
            raise UserError(f"{type(error).__name__}: {first[:160]}") from error

    return run


@_reasons
def compiled(subject: Subject, mode: str = "default", dtype: torch.dtype | None = None) -> Any:
    """torch.compile of the denoiser for these shapes, in float32 or as `half` has it."""
    if not subject.compilers:  # or the ninth network would quietly run uncompiled; later, others would compile again
        torch.compiler.reset()
    subject.compilers += 1
    run = torch.compile(subject.net if dtype is None else half(subject.net, dtype), dynamic=False, mode=mode)
    with torch.no_grad(), use_backend("reference"):
        run(*subject.example)
    return run


@_reasons
def onnxruntime(subject: Subject) -> Any:
    """ONNX Runtime's CPU provider in float32 with every graph optimisation, on as many threads as torch."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(subject.onnx), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*args: torch.Tensor | None) -> torch.Tensor:
        values = (value.numpy() for value in args if value is not None)
        return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])

    return run


@_reasons
def openvino(subject: Subject, precision: str) -> Any:
    """OpenVINO's CPU plugin at one inference precision, tuned for latency, on as many threads as torch."""
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = ov.Core().compile_model(ov.convert_model(subject.onnx), "CPU", hints)
    request = model.create_infer_request()

    def run(*args: torch.Tensor | None) -> torch.Tensor:
        values = [value.numpy() for value in args if value is not None]
        return torch.from_numpy(request.infer(values, share_inputs=True)[0].copy())

    return run
