"""Other ways to make a network fast: torch.compile, ONNX Runtime, OpenVINO, ncnn. What is not installed is a reason."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
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

    @functools.cached_property
    def ncnn(self) -> Path:
        """The denoiser of one image, as pnnx writes it for ncnn: this file and a .bin beside it."""
        import pnnx

        x, sigma, *labels = self.arguments
        one = (x[:1], sigma.reshape(1), *(value[:1] for value in labels))  # pnnx does not take numbers without an axis
        with torch.no_grad(), use_backend("reference"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph: Any = torch.export.export(self.net, one).module()  # without the checks that tracing trips over
            for node in list(graph.graph.nodes):
                if node.target is torch.ops.aten.alias.default:  # unknown to ncnn
                    node.replace_all_uses_with(node.args[0])
                    graph.graph.erase_node(node)
            graph.recompile()
            traced: Any = torch.jit.trace(graph, one, check_trace=False)
            traced.save(str(self.folder / "ncnn.pt"))
        shapes = ",".join(f"[{','.join(map(str, value.shape))}]" for value in one)
        command = [pnnx.EXEC_PATH, "ncnn.pt", f"inputshape={shapes}", "fp16=0"]
        # its exit code says nothing
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        path = self.folder / "ncnn.ncnn.param"
        if not path.exists():
            raise UserError(f"pnnx wrote nothing: {(done.stderr.strip().splitlines() or ['no output'])[-1][:160]}")
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
    def run(*args: Any, **options: Any) -> Any:
        try:
            return build(*args, **options)
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


@_reasons
def ncnn(subject: Subject, workers: bool = False) -> Any:
    """ncnn on the CPU in float32, on as many threads as torch. Its networks take one image: those of a batch one after
    another, each on all threads, or divided among workers of one thread.
    """
    import ncnn as lib

    threads = torch.get_num_threads()
    if workers and min(threads, subject.batch) == 1:
        raise UserError("one image or one thread is nothing to divide")
    net = lib.Net()
    net.opt.num_threads = 1 if workers else threads
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage", "vulkan_compute"):
        setattr(net.opt, f"use_{name}", False)
    if net.load_param(str(subject.ncnn)) or net.load_model(os.path.splitext(subject.ncnn)[0] + ".bin"):
        raise UserError("ncnn cannot run what pnnx wrote: a layer is unknown to it")
    outputs, pool = net.output_names(), ThreadPoolExecutor(threads) if workers else None

    def image(x: torch.Tensor, sigma: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        extractor = net.create_extractor()
        for name, value in zip(net.input_names(), (x, sigma.reshape(1), *labels), strict=True):
            extractor.input(name, lib.Mat(value.contiguous().numpy()).clone())  # a Mat does not keep its array
        status, found = extractor.extract(outputs[0])
        if status:
            raise UserError(f"ncnn stopped with status {status}")
        return torch.from_numpy(np.array(found))

    def run(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        each = [(row, sigma, *(() if labels is None else (labels[i],))) for i, row in enumerate(x)]
        found = pool.map(lambda args: image(*args), each) if pool else (image(*args) for args in each)
        return torch.stack([*found])

    return run
