"""The native door: what it refuses, the instruction set switch, the thread pool, and life without the compiled part."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from edm_fast import native
from edm_fast.errors import UserError
from edm_fast.ops import solver_update, upfirdn
from helpers import op_checks

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
ONES = (1.0,) * 7


def update(y, base, *, terms=(), weights=(), name="solver_update_fwd_cpu", **kwargs):
    native.call(name, y, None, base, None, None, None, terms, weights, ONES, base.numel(), **kwargs)


@needs_native
def test_call_passes_addresses():
    x, y = torch.randn(5), torch.empty(5)
    update(y, x, terms=[x, x], weights=[1.0, 2.0])
    torch.testing.assert_close(y, 4 * x)


@needs_native
@pytest.mark.parametrize(
    "y, base, kwargs, message",
    [
        (torch.empty(4), torch.zeros(4, dtype=torch.float64), {}, "float64"),
        (torch.empty(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32), {}, "int32"),
        (torch.empty(4), torch.zeros(8)[::2], {}, "strides"),
        (torch.empty(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), {"layout": torch.channels_last}, "strides"),
        (torch.empty(4), torch.zeros(4, device="meta"), {}, "meta"),
        (torch.empty(4), torch.zeros(4), {"name": "solver_update_fwd_cuda"}, "cpu"),
        (torch.empty(4), torch.zeros(4), {"terms": [torch.zeros(8)[::2]], "weights": [1.0]}, "strides"),
    ],
)
def test_call_refuses(y, base, kwargs, message):
    with pytest.raises(UserError, match=message):
        update(y, base, **kwargs)


@needs_native
def test_a_bad_status_is_an_exception():
    x = torch.zeros(4)
    with pytest.raises(RuntimeError, match="solver_update: bad argument"):
        update(torch.empty(4), x, terms=[x], weights=[1.0, 2.0])
    with pytest.raises(RuntimeError, match="solver_update: bad argument"):
        update(torch.empty(4), x, terms=[x] * 9, weights=[1.0] * 9)
    with pytest.raises(RuntimeError, match="upfirdn_fwd_cpu: bad argument"):
        native.call("upfirdn_fwd_cpu", x, x, x, (1, 1, 2, 2), 1, 1, 2, 0, 0, 1.0, False, False, 1)
    row, sizes = torch.zeros(8), (1, 8, 4, 2, 0, 0, 8)
    image, stats, numbers = torch.zeros(1, 4, 8), torch.zeros(3, 1, 2), torch.zeros(1, 3, 8)
    for y, affine, last in (
        (None, None, True),
        (None, None, False),
        (None, numbers, False),
        (image, numbers, False),
    ):
        arguments = image, y, stats, row, row, None, None, affine, sizes, 1e-5, True, last
        with pytest.raises(RuntimeError, match="group_norm_silu_fwd_cpu: bad argument"):
            native.call("group_norm_silu_fwd_cpu", *arguments)
    native.call("group_norm_silu_fwd_cpu", image, None, stats, row, row, None, None, numbers, sizes, 1e-5, True, True)
    with pytest.raises(RuntimeError, match="bad argument"):
        native.lib.solver_update_fwd_cpu(0, 0, 0, 0, 0, 0, 0, [], [], ONES, 0, 9, 1)  # no such instruction set


@needs_native
def test_instruction_set_switch():
    best = native.isa()
    with native.use_isa("portable"):
        assert native.isa() == "portable"
    assert native.isa() == best == native.ISAS[native.lib.BEST_ISA]
    with pytest.raises(UserError, match="sse9"), native.use_isa("sse9"):
        pass


def test_layouts():
    x = torch.zeros(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert native.layout_of(x, x) == torch.contiguous_format
    assert native.layout_of(last, last) == torch.channels_last
    assert native.layout_of(x, last) is None and native.layout_of(x[..., ::2]) is None
    assert native.layout_of(torch.zeros(3)[::2]) is None
    assert (
        native.layout_of(x[:, :1], last[:, :1].clone(memory_format=torch.contiguous_format)) is None
    )  # x[:, :1] has gaps


@needs_native
def test_the_pool_is_torchs():
    """A second OpenMP library in the process would mean two pools that spin on the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        solver_update(torch.zeros(64, 3, 32, 32))
    finally:
        torch.set_num_threads(threads)
    if sys.platform != "linux":
        return
    with open("/proc/self/maps") as maps:
        loaded = {
            line.split()[-1] for line in maps if "/torch" in line and "libgomp" in os.path.basename(line.split()[-1])
        }
    if loaded:
        assert native.thread_pool() in loaded


@needs_native
def test_threads_of_its_own_without_openmp():
    """Before torch is loaded no pool is in the process; the fallback then computes the same."""
    code = f"""
import array, sys
sys.path.insert(0, {os.path.dirname(native.lib.__file__)!r})
import _C
n = 100000
x, y = array.array("d", range(n)), array.array("d", bytes(8 * n))
for threads in (1, 2, 3, 8, 8, 8):
    y[:] = array.array("d", bytes(8 * n))
    to, of = y.buffer_info()[0], x.buffer_info()[0]
    _C.solver_update_fwd_cpu(1, to, 0, of, 0, 0, 0, [of], [0.5], [1.0] * 7, n, 0, threads)
    assert all(y[i] == 1.5 * i for i in range(n)), threads
print(_C.thread_pool())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "own threads", done.stderr


@needs_native
def test_many_python_threads_at_once():
    f, wrong = torch.full((2, 2), 0.25), []
    inputs = [torch.randn(4, 64, 32, 32) for _ in range(4)]
    expected = [op_checks.forced("upfirdn", "reference")(x, f, down=2) for x in inputs]

    def work(index):
        for _ in range(10):
            if not torch.equal(upfirdn(inputs[index], f, down=2), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_alone():
    """A fork has none of the pool's threads; waiting for them would never end."""
    code = """
import os, signal, torch
from edm_fast.ops import solver_update, upfirdn
torch.set_num_threads(2)
x, f = torch.randn(8, 64, 32, 32), torch.full((2, 2), 0.25)
want = upfirdn(x, f, down=2).numpy()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    os._exit(0 if (upfirdn(x, f, down=2).numpy() == want).all() else 1)
raise SystemExit(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_ops_work_without_the_compiled_part(monkeypatch):
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "_failure", "the compiled part is not there")
    x, f = torch.randn(1, 2, 4, 4), torch.full((2, 2), 0.25)
    for choice in (op_checks.choose("upfirdn", x, f, down=2), op_checks.choose("solver_update", x)):
        assert choice.backend == "reference" and "not there" in choice.reasons["cpu"]
    assert upfirdn(x, f, down=2).shape == (1, 2, 2, 2)
    with pytest.raises(UserError, match="the best here is none"), native.use_isa("portable"):
        pass


@pytest.mark.parametrize(
    "fault", ["raise OSError('undefined symbol')", "raise ImportError('x')", "1 / 0", "BEST_ISA = 0"]
)
def test_a_broken_compiled_part_is_a_reason(fault, tmp_path):
    """Also one of another version, which lacks what is asked for."""
    program = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'edm_fast._C':\n"
        "            import importlib.util; return importlib.util.spec_from_file_location(name, sys.argv[1])\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from edm_fast import native, ops; import torch\n"
        "assert native.lib is None; print(native.cpu_reason())\n"
        "print(ops.upfirdn(torch.ones(1, 1, 4, 4), torch.ones(2, 2) / 4, down=2).sum().item())\n"
    )
    (tmp_path / "broken.py").write_text(fault)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "broken.py")], capture_output=True, text=True)
    reason, result = done.stdout.splitlines()
    assert reason.startswith("the compiled part ") and result == "4.0", done.stderr
