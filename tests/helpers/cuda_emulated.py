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
FLAGS = "-std=c++17 -O1 -fPIC -shared -ffp-contract=off -fno-strict-aliasing -Wno-unknown-pragmas".split()
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
GUARD = 1 << 14
Pointers = ctypes.c_void_p * 8


def compile_emulation(out, replaced=None):
    """The shared library `out`; `replaced`: a copy of the repository's csrc with other code, for planted errors."""
    csrc = replaced or ROOT / "csrc"
    source = (ROOT / "tests/cuda_emulation/door.cpp").read_text().replace("../../csrc", csrc.as_posix())
    command = [COMPILER, *FLAGS, f"-I{ROOT}/tests/cuda_emulation", "-x", "c++", "-", "-o", str(out)]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@functools.cache
def library():
    """Built once for all worker processes, under the name of the sources' digest."""
    sources = sorted([*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc/cuda").glob("*.cu")])
    sources += sorted((ROOT / "tests/cuda_emulation").iterdir())
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
    lib.group_norm_silu_fwd.restype = ctypes.c_int64
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

    def upfirdn(self, x, f, up=1, down=1, padding=0, size=None, gain=None, adjoint=None):
        size = size or [output_size(n, f.shape[0], up, down, padding) for n in x.shape[2:]]
        self.start()
        layout = dense(x)
        y = self.place(*x.shape[:2], *size, dtype=x.dtype, layout=layout)
        given = self.place(like=x, layout=layout), self.place(like=f.to(x.dtype).contiguous())
        numbers = (ctypes.c_int64 * 10)(*x.shape, *size, f.shape[0], max(up, down), padding, x.shape[1])
        gain = ctypes.c_double(float(up**2) if gain is None else gain)
        is_up = (up > 1) if adjoint is None else adjoint
        last = layout == torch.channels_last
        args = (*(ctypes.c_void_p(t.data_ptr()) for t in (y, *given)), numbers, gain, is_up, last, self.device)
        self.check(self.lib.upfirdn_fwd(CODES[x.dtype], *args))
        return y

    def solver_update(
        self, base, x=None, D=None, *, p=1.0, q=1.0, t=1.0, a=1.0, h=1.0, w=1.0, terms=(), weights=(), noise=None, c=0.0
    ):
        self.start()
        layout = dense(base)
        y = self.place(*base.shape, dtype=base.dtype, layout=layout)
        d = self.place(*base.shape, dtype=base.dtype, layout=layout) if D is not None else None
        given = [None if s is None else self.place(like=s, layout=layout) for s in (base, x, D, noise, *terms)]
        pointers, parts = Pointers(*map(address, (y, d, *given[:4]))), Pointers(*map(address, given[4:]))
        numbers = (ctypes.c_double * 7)(p, q, t, a, h, w, c)
        args = (pointers, parts, (ctypes.c_double * 8)(*weights), len(terms), numbers, ctypes.c_int64(base.numel()))
        self.check(self.lib.solver_update_fwd(CODES[base.dtype], *args, self.device))
        return y, d

    def group_norm_silu(self, x, weight, bias, groups, eps=1e-5, scale=None, shift=None, silu=True, stats=False):
        self.start()
        layout = dense(x)
        y = self.place(*x.shape, dtype=x.dtype, layout=layout)
        kept = self.place(3, x.shape[0], groups, dtype=torch.promote_types(x.dtype, torch.float32)) if stats else None
        parameters = [None if s is None else self.place(like=s.to(x.dtype)) for s in (weight, bias, scale, shift)]
        space = math.prod(x.shape[2:])
        rows = [0 if s is None else s.shape[0] for s in (scale, shift)]
        numbers = (ctypes.c_int64 * 7)(*x.shape[:2], space, groups, *rows, x.shape[1])
        given = [y, kept, self.place(like=x, layout=layout), *parameters]
        rest = numbers, ctypes.c_double(eps), silu, layout == torch.channels_last or space == 1
        bytes_ = self.lib.group_norm_silu_fwd(CODES[x.dtype], Pointers(*map(address, given)), *rest, -1)
        self.workspace = bytes_
        given.append(self.place(bytes_ // x.element_size(), dtype=x.dtype) if bytes_ else None)
        self.check(self.lib.group_norm_silu_fwd(CODES[x.dtype], Pointers(*map(address, given)), *rest, self.device))
        return (y, kept) if stats else y


def dense(x):
    """The layout an op would hand to the kernel."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def address(tensor):
    return None if tensor is None else tensor.data_ptr()
