"""Other ways to make a network fast: torch.compile, ONNX Runtime, OpenVINO, ncnn, MNN, OpenCV.

What is not installed is a reason. The libraries run a `Portable` on as many threads as torch; the preconditioner around
it and the waves of the noise level, a few microseconds, are torch's.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_fast.backend import use_backend
from edm_fast.errors import BROKEN, UserError
from edm_fast.evaluation._networks import Inputs, half, inputs
from edm_fast.evaluation._portable import Denoiser, Portable

SIGMA = 0.5  # of every timed evaluation; the time does not depend on it


class Subject:
    """A network and the inputs it is timed with. What several peers need is made once."""

    def __init__(self, net: Any, batch: int, folder: str | Path) -> None:
        self.net = net
        self.batch = batch
        self.device: torch.device = next(net.parameters()).device
        self.example: Inputs = inputs(net, batch, SIGMA, device=self.device)
        self.folder = Path(folder)
        self.compilers = 0  # functions of torch.compile made for this subject

    @functools.cached_property
    def portable(self) -> Portable:
        return Portable(self.net, self.example).eval()

    @functools.cached_property
    def onnx(self) -> Path:
        """The portable network, with this batch, as an ONNX file of a version that every peer reads."""
        import onnx  # noqa: F401  (a missing package is the reason)

        path, inputs = self.folder / "network.onnx", self.portable.inputs
        with _exporting():
            names: dict[str, Any] = {"input_names": list(inputs), "output_names": ["F"]}
            torch.onnx.export(self.portable, (*inputs.values(),), str(path), dynamo=False, opset_version=17, **names)
        return path

    @functools.cached_property
    def ncnn(self) -> Path:
        """The portable network as pnnx writes it for ncnn, for any batch: this file and a .bin beside it."""
        import pnnx

        path, inputs = self.folder / "network.ncnn.param", self.portable.inputs.values()
        with _exporting():
            traced: Any = torch.jit.trace(self.portable, (*inputs,), check_trace=False)
            traced.save(str(path.with_name("network.pt")))
        shapes = ",".join(f"[{','.join(map(str, value.shape))}]" for value in inputs)
        _convert(path, [pnnx.EXEC_PATH, "network.pt", f"inputshape={shapes}", "fp16=0"])
        return path

    @functools.cached_property
    def mnn(self) -> Path:
        """The portable network in the format of MNN."""
        path = self.folder / "network.mnn"
        # the converter itself: what MNN installs as its command installs a package of its own when it is imported
        convert = "import sys, _tools; _tools.mnnconvert(sys.argv)"
        options = ["-f", "ONNX", "--modelFile", str(self.onnx), "--MNNModel", str(path), "--bizCode", "edm"]
        _convert(path, [sys.executable, "-c", convert, *options])
        return path


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert(path: Path, command: Sequence[str]) -> None:
    """Run a converter, whose exit code says nothing, in the folder of the file that it is to write."""
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    if not path.exists():
        last = f"no output\n{done.stdout}{done.stderr}".strip().splitlines()[-1]
        raise UserError(f"its converter wrote no {path.suffix} file: {last[:160]}")


@contextlib.contextmanager
def subject(net: Any, batch: int) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="edm-fast-") as folder:
        yield Subject(net, batch, folder)


def _reasons(build: Callable[..., Any]) -> Callable[..., Any]:
    """A peer that cannot be built or called, for whatever cause, is a row without numbers: the benchmark goes on."""

    @functools.wraps(build)
    def run(subject: Subject, *args: Any, **options: Any) -> Any:
        try:
            found = build(subject, *args, **options)
            with torch.no_grad(), use_backend("reference"):
                found(*subject.example)
            return found
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
    return torch.compile(subject.net if dtype is None else half(subject.net, dtype), dynamic=False, mode=mode)


@_reasons
def onnxruntime(subject: Subject) -> Denoiser:
    """ONNX Runtime's CPU provider in float32 with every graph optimisation."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads sleep in others' turns
    session = ort.InferenceSession(str(subject.onnx), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return subject.portable.around(lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0])


@_reasons
def openvino(subject: Subject, precision: str) -> Denoiser:
    """OpenVINO's CPU plugin at one inference precision, tuned for latency."""
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = ov.Core().compile_model(ov.convert_model(subject.onnx), "CPU", hints)
    request = model.create_infer_request()
    return subject.portable.around(lambda *arrays: request.infer([*arrays], share_inputs=True)[0].copy())


@_reasons
def ncnn(subject: Subject, split: bool = False) -> Denoiser:
    """ncnn in float32: the whole batch on all threads, or split among workers of one thread each."""
    import ncnn as lib

    threads = torch.get_num_threads()
    workers = min(threads, subject.batch) if split else 1
    if split and workers < 2:
        raise UserError("one image, or one thread, is nothing to split")
    if not hasattr(lib.Mat, "batch"):
        raise UserError("this ncnn knows no batches; expected one of July 2026 or later")
    net = lib.Net()
    net.opt.num_threads = 1 if split else threads
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage", "vulkan_compute"):
        setattr(net.opt, f"use_{name}", False)
    path = subject.ncnn
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise UserError("ncnn does not know a layer of what pnnx wrote")

    def part(arrays: Sequence[np.ndarray]) -> np.ndarray:
        extractor = net.create_extractor()
        for name, array in zip(net.input_names(), arrays, strict=True):
            # a Mat does not keep its array
            extractor.input(name, lib.Mat(np.ascontiguousarray(array), batch_index=0).clone())
        status, found = extractor.extract(net.output_names()[0])
        if status:
            raise UserError(f"ncnn stopped with status {status}")
        return np.stack([np.array(found.batch(image)) for image in range(found.n)])

    if not split:
        return subject.portable.around(lambda *arrays: part(arrays))
    pool = ThreadPoolExecutor(workers)

    def divided(*arrays: np.ndarray) -> np.ndarray:
        # a single row, such as that of the noise level, serves all images
        each = [np.array_split(array, workers) if len(array) > 1 else [array] * workers for array in arrays]
        return np.concatenate([*pool.map(part, zip(*each))])

    return subject.portable.around(divided)


@_reasons
def mnn(subject: Subject) -> Denoiser:
    """MNN's CPU backend in float32."""
    import MNN

    options = {"backend": "CPU", "numThread": torch.get_num_threads(), "precision": "high", "memory": "high"}
    manager = MNN.nn.create_runtime_manager((options,))
    names, expr = list(subject.portable.inputs), MNN.expr
    net = MNN.nn.load_module_from_file(str(subject.mnn), names, ["F"], runtime_manager=manager)

    def run(*arrays: np.ndarray) -> np.ndarray:
        inputs = [expr.placeholder([*array.shape], expr.NCHW, expr.float) for array in arrays]
        for value, array in zip(inputs, arrays):
            value.write(np.ascontiguousarray(array))
        return expr.convert(net.forward(inputs)[0], expr.NCHW).read().copy()

    return subject.portable.around(run)


@_reasons
def opencv(subject: Subject) -> Denoiser:
    """OpenCV's own engine in float32; its number of threads is one for the whole process, and nobody else's."""
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    net = cv2.dnn.readNetFromONNX(str(subject.onnx), cv2.dnn.ENGINE_CLASSIC)

    def run(*arrays: np.ndarray) -> np.ndarray:
        for name, array in zip(subject.portable.inputs, arrays):
            net.setInput(array, name)
        return net.forward()

    return subject.portable.around(run)
