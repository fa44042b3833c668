"""Every CPU kernel on the instruction sets of another processor, as emulated: what it writes is what the host wrote.

The host runs each case on the instruction set that rounds in the same way, with or without fused multiply-adds, and so
the results are the same to the bit, but where sums over the lanes of vectors of another width enter.
"""

import math
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from edm_fast import backend, cases, native, ops, use_backend
from helpers import native_conv as nc
from helpers.recorded import Record

ROOT = Path(__file__).parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = "-std=c++17 -O1 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -pthread".split()
SOURCES = [*sorted((ROOT / "csrc/cpu").rglob("*.cpp")), ROOT / "tests/instruction_sets/replay.cpp"]
HOSTS = {"portable": "portable", "neon": "avx2"}  # whose bits they are to have
HALF = math.sqrt(0.5)
CONVOLUTIONS = [  # n, channels, h, w, outputs, padding, bias rows, residual, scale
    (2, 5, 7, 9, 6, None, 0, False, 1.0),
    (2, 64, 6, 5, 70, None, 1, True, HALF),
    (1, 150, 5, 8, 33, 0, 1, False, 1.0),
]

missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"no {' and no '.join(missing)} (.ci/run installs them)"),
    pytest.mark.skipif(platform.machine() == "aarch64", reason="the tests of the ops run on this processor itself"),
    nc.needs_native,
]


def compiled(folder, csrc=ROOT / "csrc"):
    """The program replay for 64-bit ARM."""

    def compile_one(pair):
        out = folder / f"{pair[0]}.o"
        return subprocess.run([COMPILER, *FLAGS, "-c", pair[1], "-o", out], capture_output=True, text=True), out

    sources = [csrc / path.relative_to(ROOT / "csrc") if ROOT / "csrc" in path.parents else path for path in SOURCES]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or 2)) as pool:
        done = list(pool.map(compile_one, enumerate(sources)))
    for result, _ in done:
        assert result.returncode == 0 and not result.stderr, result.stderr[-3000:]
    subprocess.run([COMPILER, *[out for _, out in done], "-o", folder / "replay", "-pthread", "-ldl"], check=True)
    return folder / "replay"


def linked(folder, objects):
    """The same with objects that were compiled for a wheel."""
    own, out = SOURCES[-1], folder / "replay"
    found = [path for path in Path(objects).rglob("*.o") if path.name != "bindings.cpp.o"]
    assert len(found) == len(SOURCES) - 1, f"{objects} holds {len(found)} objects; expected {len(SOURCES) - 1}"
    subprocess.run([COMPILER, *FLAGS, own, *found, "-o", out, "-ldl"], check=True)
    return out


def replay(program, record, isa):
    command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", program, record, isa]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def derive(op, args, kwargs):
    """Forward, and where the op has one, backward."""
    leaves = [a.requires_grad_() for a in args if isinstance(a, torch.Tensor)]
    y = getattr(ops, op)(*args, **kwargs)
    torch.autograd.grad(y, leaves, y.detach() + 0.3, allow_unused=True)


def record_ops(record):
    for op in cases.CASES:
        for case in [*cases.cases(op, real=False), cases.SMALL[op]]:
            for dtype in (torch.float32, torch.float64):
                args, kwargs = case.inputs(dtype)
                how, call = backend.ops()[op].implementations["cpu"], backend.ops()[op].arguments(*args, **kwargs)
                if how.reason(call) is not None:  # of a dtype that it does not take
                    continue
                with record.case(f"{op} {case.name} {dtype}"):
                    if op in ("upfirdn", "solver_update"):
                        getattr(ops, op)(*args, **kwargs)
                    else:
                        derive(op, args, kwargs)


def convolve(x, weight, algorithm, rows=None, residual=None, scale=1.0, padding=None, affine=None):
    """As native_conv.convolve, through native.call."""
    outputs, inputs, k, _ = weight.shape
    n, _, h, w = x.shape
    pad = k // 2 if padding is None else padding
    size = [length + 2 * pad - k + 1 for length in nc.seen(x, algorithm).shape[2:]]
    y = torch.full((n, outputs, *size), math.nan).contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    residual = residual if residual is None else residual.contiguous(memory_format=torch.channels_last)
    balance = nc.pack(weight, algorithm) if algorithm.paired else None
    packed = nc.pack(weight, algorithm) if algorithm.packed else weight.reshape(-1)
    sizes = dict(algorithm=algorithm, n=n, h=h, w=w, inputs=inputs, kernel=k, padding=pad)
    native.call(
        "conv2d_fwd_cpu",
        layout=torch.channels_last,
        **sizes,
        y=y,
        x=x,
        weight=packed,
        bias=rows,
        residual=residual,
        outputs=outputs,
        bias_rows=0 if rows is None else rows.shape[0],
        y_pitch=outputs,
        x_pitch=inputs,
        residual_pitch=outputs,
        scale=scale,
        workspace=torch.full((native.lib.conv2d_fwd_workspace(**sizes),), math.nan),
        affine=affine,
        silu=affine is not None,
        balance=balance,
    )


def record_convolutions(record):
    for algorithm, kernel in nc.KINDS:
        for n, c, h, w, out, padding, *rest in CONVOLUTIONS:
            pad = padding if (kernel, padding) in nc.layers(algorithm) else None
            x, weight, *tail = nc.inputs(n, c, h, w, out, kernel, pad, *rest, double=algorithm.doubled)
            loose = algorithm.int16 or algorithm.paired  # sums over lanes enter
            # of integers few differ, by one; the budget allows for all of them
            share = 0.0 if not loose else 0.03 if algorithm.int16 else 1.0
            tolerance = share * nc.budget(algorithm, nc.seen(x, algorithm), weight, *tail)
            ignored = ("workspace", "packed") if algorithm.int16 else ("workspace",)
            with record.case(f"conv2d {algorithm.name} {kernel} {(n, c, h, w, out)}", tolerance, ignored):
                convolve(x, weight, algorithm, *tail)
            if not algorithm.packed and not loose:
                affine = nc.normalised(x, True, 5 if c % 5 == 0 else 4)[1]
                with record.case(f"conv2d {algorithm.name} of a norm {(n, c, h, w, out)}"):
                    convolve(x, weight, algorithm, *tail, affine=affine)


@pytest.fixture(scope="module")
def program(tmp_path_factory, request):
    folder, objects = tmp_path_factory.mktemp("replay"), request.config.getoption("--arm-objects")
    return linked(folder, objects) if objects else compiled(folder)


@pytest.mark.parametrize("isa", HOSTS)
def test_kernels_on_another_processor(isa, program, tmp_path):
    if not native.available(HOSTS[isa]):
        pytest.skip(f"this processor has no {HOSTS[isa]}")
    record = Record(tmp_path / "record")
    with native.use_isa(HOSTS[isa]), use_backend("cpu"):
        record_ops(record)
        record_convolutions(record)
    record.close()
    done = replay(program, tmp_path / "record", isa)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
