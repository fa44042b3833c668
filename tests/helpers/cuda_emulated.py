"""The CUDA sources as host C++ (tests/cuda_emulation): built once, and each op as a function of tensors.

Memory that kernels see lies between guards of NaN bytes: what is written there is found, and what is read shows. Fresh
outputs and workspaces are NaN.
"""

import ctypes
import fcntl
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from edm_fast.ops.upfirdn.reference import output_size

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = "-std=c++17 -fPIC -ffp-contract=off -fno-strict-aliasing -Wno-unknown-pragmas".split()
FLAGS += ["-fsanitize=thread", "-fno-gnu-unique"]  # races.h; libraries of one process that share nothing
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
GUARD = 1 << 14


def compile_emulation(out, replaced=None):
    """The shared library `out`; `replaced`: a copy of the repository's csrc with other code, for planted errors."""
    csrc = replaced or ROOT / "csrc"
    source = (ROOT / "tests/cuda_emulation/door.cpp").read_text().replace("../../csrc", csrc.as_posix())
    effort = "-O0" if replaced else "-O1"  # for the few calls that find an error the compiler takes longest
    folders = [f"-I{ROOT}/tests/cuda_emulation", f"-I{ROOT}/tests"]
    # linked on its own: the library of ThreadSanitizer stays out (races.h)
    for command in (
        [COMPILER, effort, *FLAGS, *folders, "-c", "-x", "c++", "-", "-o", f"{out}.o"],
        [COMPILER, "-shared", f"{out}.o", "-o", str(out)],
    ):
        done = subprocess.run(command, input=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


@functools.cache
def library():
    """Built once for all worker processes, under the name of the sources' digest."""
    sources = sorted([*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc/cuda").glob("*.cu")])
    sources += [*sorted((ROOT / "tests/cuda_emulation").iterdir()), ROOT / "tests/helpers/filled.h"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + str(ROOT).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("EDM_FAST_CACHE_DIR") or tempfile.gettempdir()) / "cuda-emulation"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{digest}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            compile_emulation(folder / "new.so")
            os.replace(folder / "new.so", out)
    return opened(out)


def opened(path):
    lib = ctypes.CDLL(str(path))
    lib.call.restype = ctypes.c_int64
    lib.error_text.restype = ctypes.c_char_p
    return lib


class Emulated:
    """The ops on CPU tensors. `shift`: elements that every array lies off a multiple of 16 bytes."""

    def __init__(self, lib=None, shift=0, order=0, device=0):
        self.lib, self.shift, self.order, self.device = lib or library(), shift, order, device
        self.kept = []

    def place(self, *shape, like=None, dtype=None, layout=torch.contiguous_format):
        """A tensor between guards: of NaN, or a copy of `like`."""
        if like is not None:
            shape, dtype = like.shape, like.dtype
        size, strides = math.prod(shape) * dtype.itemsize, torch.empty(shape, device="meta")
        strides = strides.to(memory_format=layout if len(shape) == 4 else torch.contiguous_format).stride()
        memory = torch.full((size + 2 * GUARD,), 255, dtype=torch.uint8)
        start = GUARD + (-memory.data_ptr()) % 16 + self.shift * dtype.itemsize
        inside = memory[start - start % dtype.itemsize :][: size // dtype.itemsize * dtype.itemsize]
        tensor = inside.view(dtype).as_strided(shape, strides) if size else torch.empty(shape, dtype=dtype)
        before = None
        if like is not None:
            tensor.copy_(like)
            before = memory.clone()
        self.kept.append((memory, start, size, before))
        return tensor

    def check(self, status):
        assert status == 0, f"status {status}: {self.lib.error_text(status).decode() if status >= 1000 else ''}"
        for memory, start, size, before in self.kept:
            assert (memory[:start] == 255).all() and (memory[start + size :] == 255).all(), "written out of bounds"
            assert before is None or torch.equal(memory, before), "input changed"
        self.kept.clear()
        assert self.lib.current_device() == 0, "the caller's device was not restored"

    def start(self):
        self.kept.clear()
        self.lib.emulate(self.order, 2)

    def call(self, function, dtype, **arguments):
        """A function of csrc/cuda/functions.h; its status, or the size that it tells."""
        values = [("dtype", CODES[dtype])]
        for name, value in arguments.items():
            values += [(name, item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        count, tensors = len(values), [isinstance(value, torch.Tensor) for _, value in values]
        names = (ctypes.c_char_p * count)(*(name.encode() for name, _ in values))
        numbers = (ctypes.c_double * count)(*(0 if t or v is None else v for t, (_, v) in zip(tensors, values)))
        addresses = (ctypes.c_void_p * count)(*(v.data_ptr() if t else None for t, (_, v) in zip(tensors, values)))
        return self.lib.call(function.encode(), count, names, numbers, addresses, self.device)

    def upfirdn(self, x, f, up=1, down=1, padding=0, size=None, gain=None, adjoint=None):
        size = size or [output_size(n, f.shape[0], up, down, padding) for n in x.shape[2:]]
        self.start()
        layout = dense(x)
        y = self.place(*x.shape[:2], *size, dtype=x.dtype, layout=layout)
        x, f = self.place(like=x, layout=layout), self.place(like=f.to(x.dtype).contiguous())
        sizes = {name: length for name, length in zip(("n", "c", "h", "w", "out_h", "out_w"), (*x.shape, *size))}
        rest = dict(
            taps=f.shape[0],
            factor=max(up, down),
            padding=padding,
            gain=float(up**2) if gain is None else gain,
            up=(up > 1) if adjoint is None else adjoint,
            channels_last=layout == torch.channels_last,
            x_pitch=x.shape[1],
        )
        self.check(self.call("upfirdn_fwd_cuda", x.dtype, y=y, x=x, f=f, **sizes, **rest))
        return y

    def solver_update(
        self, base, x=None, D=None, *, p=1.0, q=1.0, t=1.0, a=1.0, h=1.0, w=1.0, terms=(), weights=(), noise=None, c=0.0
    ):
        self.start()
        layout = dense(base)
        y = self.place(*base.shape, dtype=base.dtype, layout=layout)
        d = self.place(*base.shape, dtype=base.dtype, layout=layout) if D is not None else None
        tensors = {"base": base, "x": x, "D": D, "noise": noise}
        placed = {name: None if s is None else self.place(like=s, layout=layout) for name, s in tensors.items()}
        terms = [self.place(like=s, layout=layout) for s in terms]
        numbers = dict(weights=list(weights), p=p, q=q, t=t, a=a, h=h, w=w, c=c, size=base.numel())
        self.check(self.call("solver_update_fwd_cuda", base.dtype, y=y, d=d, **placed, terms=terms, **numbers))
        return y, d

    def group_norm_silu(self, x, weight, bias, groups, eps=1e-5, scale=None, shift=None, silu=True, stats=False):
        self.start()
        layout = dense(x)
        y = self.place(*x.shape, dtype=x.dtype, layout=layout)
        kept = self.place(3, x.shape[0], groups, dtype=torch.promote_types(x.dtype, torch.float32)) if stats else None
        tensors = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
        space = math.prod(x.shape[2:])
        arguments = dict(
            y=y,
            stats=kept,
            x=self.place(like=x, layout=layout),
            **{name: None if s is None else self.place(like=s.to(x.dtype)) for name, s in tensors.items()},
            n=x.shape[0],
            c=x.shape[1],
            space=space,
            groups=groups,
            scale_rows=0 if scale is None else scale.shape[0],
            shift_rows=0 if shift is None else shift.shape[0],
            x_pitch=x.shape[1],
            eps=eps,
            silu=silu,
            channels_last=layout == torch.channels_last or space == 1,
        )
        self.workspace = size = self.call("group_norm_silu_fwd_workspace_cuda", x.dtype, **arguments)
        workspace = self.place(size // x.element_size(), dtype=x.dtype) if size else None
        self.check(self.call("group_norm_silu_fwd_cuda", x.dtype, workspace=workspace, **arguments))
        return (y, kept) if stats else y


def dense(x):
    """The layout an op would hand to the kernel."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
