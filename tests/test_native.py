"""The native door: what it refuses, the instruction set switch, the thread pool, and life without the compiled part."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from edm_fast import native
from edm_fast.errors import UserError
from edm_fast.ops import solver_update, upfirdn
from helpers import op_checks

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
ONES = dict.fromkeys("pqtahwc", 1.0)


def update(y, base, *, name="solver_update_fwd_cpu", **kwargs):
    native.call(name, y=y, base=base, size=base.numel(), **ONES, **kwargs)


def without_memory(*shape):
    """Its numbers were given back, as sharded training does."""
    x = torch.zeros(*shape)
    x.untyped_storage().resize_(0)
    return x


@needs_native
def test_knows_no_torch():
    """One compiled part works with every version of torch."""
    data = Path(native.lib.__file__).read_bytes()
    for name in (b"libtorch", b"libc10", b"_ZN2at", b"_ZN3c10", b"_ZN5torch", b"_ZNK2at"):
        assert name not in data
    assert b"conv2d_fwd_cpu" in data


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
        (torch.empty(4), without_memory(4), {}, "without memory"),
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
    for wrong in ({"terms": [x], "weights": [1.0, 2.0]}, {"terms": [x]}, {"x": x}, {"x": x, "D": x}):
        with pytest.raises(RuntimeError, match="solver_update_fwd_cpu: bad argument"):
            update(torch.empty(4), x, **wrong)
    with pytest.raises(RuntimeError, match="upfirdn_fwd_cpu: bad argument"):
        native.call("upfirdn_fwd_cpu", y=x, x=x, f=x, **{**RESAMPLING, "factor": 0})
    row, image, stats = torch.zeros(8), torch.zeros(1, 4, 8), torch.zeros(3, 1, 2)
    affine = torch.zeros(1, 3, 8)
    norm = dict(x=image, stats=stats, weight=row, bias=row, n=1, c=8, space=4, groups=2, eps=1e-5, silu=True, x_pitch=8)
    for wrong in (
        {"channels_last": True},
        {"channels_last": False},
        {"channels_last": False, "affine": affine},
        {"channels_last": False, "affine": affine, "y": image},
    ):
        with pytest.raises(RuntimeError, match="group_norm_silu_fwd_cpu: bad argument"):
            native.call("group_norm_silu_fwd_cpu", **norm, **wrong)
    native.call("group_norm_silu_fwd_cpu", **norm, affine=affine, channels_last=True)
    with pytest.raises(RuntimeError, match="bad argument"):
        numbers = dict(dtype=0, y=0, base=0, size=0, **ONES)
        native.lib.solver_update_fwd_cpu(**numbers, isa=99, threads=1)  # no such instruction set
    bound = native.lib.bind(native.lib.solver_update_fwd_cpu, **numbers, isa=0)
    for call in (lambda: native.lib.solver_update_fwd_cpu(**numbers, isa=0, threads=0), lambda: bound(0)):
        with pytest.raises(RuntimeError, match="solver_update_fwd_cpu: 0 threads; expected 1 or more"):
            call()


RESAMPLING = dict(
    **dict(n=1, c=1, h=2, w=2, out_h=1, out_w=1, taps=2, factor=2, padding=0, x_pitch=1),
    **dict(gain=1.0, up=False, channels_last=False),
)


@needs_native
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"taps": ...}, r"upfirdn_fwd_cpu\(\) needs the argument 'taps'"),
        ({"y": ...}, r"upfirdn_fwd_cpu\(\) needs the argument 'y'"),
        ({"tabs": 2}, r"upfirdn_fwd_cpu\(\) has no argument 'tabs'"),
        ({"y": None}, r"upfirdn_fwd_cpu\(\): y is None; expected an address"),
        ({"taps": 2.0}, r"taps is 2.0; expected an integer"),
        ({"taps": True}, r"taps is True; expected a number"),
        ({"taps": 2**63}, r"expected an integer"),
        ({"dtype": 2**31}, r"expected a small one"),
        ({"gain": "1"}, r"gain is '1'; expected a number"),
        ({"up": 1}, r"up is 1; expected True or False"),
        ({"f": 1.5}, r"f is 1.5; expected an address"),
        ({"f": -(2**64)}, r"expected an address"),
        ({"threads": ...}, r"needs the argument 'threads'"),
        ({"device": 0}, r"has no argument 'device'"),
    ],
)
def test_arguments_by_name(changes, message):
    x = torch.zeros(4)
    arguments = {"dtype": 0, "y": x.data_ptr(), "x": x.data_ptr(), "f": x.data_ptr(), **RESAMPLING}
    arguments |= {"isa": 0, "threads": 1, **changes}
    with pytest.raises(TypeError, match=message):
        native.lib.upfirdn_fwd_cpu(**{name: value for name, value in arguments.items() if value is not ...})


@needs_native
def test_names_in_any_order_and_of_any_make():
    """Also a name that Python has not interned."""
    x, f = torch.arange(4.0), torch.full((2, 2), 0.25)
    for order in (sorted, reversed):
        y = torch.zeros(1)
        arguments = {"y": y, "x": x, "f": f, **RESAMPLING}
        native.call("upfirdn_fwd_cpu", **{"".join([*name]): arguments[name] for name in order([*arguments])})
        assert y.item() == 1.5


@needs_native
def test_lists_and_functions_are_verified():
    x = torch.zeros(4)
    with pytest.raises(TypeError, match="terms is .*; expected a shorter list"):
        update(torch.empty(4), x, terms=[x] * 9, weights=[1.0] * 9)
    for weights in (1.0, [None]):
        with pytest.raises(TypeError, match="weights is .*; expected a"):
            update(torch.empty(4), x, terms=[x], weights=weights)
    with pytest.raises(TypeError, match="by name"):
        native.lib.conv2d_fwd_cpu(0)
    for args in ((), (len,), (native.lib.thread_pool,), (native.lib.upfirdn_fwd_cpu, 1)):
        with pytest.raises(TypeError, match="one native function"):
            native.lib.bind(*args)
    with pytest.raises(TypeError, match="cannot be bound"):
        native.lib.bind(native.lib.conv2d_packed_size)


@needs_native
def test_bound_calls():
    x, f, y = torch.arange(4.0), torch.full((2, 2), 0.25), torch.zeros(1)
    addresses = {"y": y.data_ptr(), "x": x.data_ptr(), "f": f.data_ptr()}
    with native.use_isa("portable"):
        call = native.bind("upfirdn_fwd_cpu", **addresses, **RESAMPLING)
    assert call(2) is None and y.item() == 1.5
    x.add_(1)
    assert call(1) is None and y.item() == 2.5
    for args, kwargs in (((), {}), (("2",), {}), ((1, 2), {}), ((), {"threads": 1})):
        with pytest.raises(TypeError, match="takes the number of threads"):
            call(*args, **kwargs)
    with pytest.raises(TypeError):
        type(call)()
    with pytest.raises(TypeError, match="needs the argument 'f'"):
        native.bind("upfirdn_fwd_cpu", y=1, x=1, **RESAMPLING)
    with pytest.raises(TypeError, match="has no argument 'threads'"):
        native.bind("upfirdn_fwd_cpu", **addresses, **RESAMPLING, threads=1)
    with pytest.raises(RuntimeError, match="upfirdn_fwd_cpu: bad argument"):
        native.bind("upfirdn_fwd_cpu", **addresses, **{**RESAMPLING, "taps": 0})(1)


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
        assert os.path.realpath(native.thread_pool()) in loaded


@needs_native
def test_how_far_cores_are_apart():
    """What was measured, or what it is told."""
    assert native.lib.far_apart() in (False, True)
    try:
        for far in (True, False):
            native.lib.set_far_apart(far)
            assert native.lib.far_apart() is far
    finally:
        native.lib.set_far_apart(-1)


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
    numbers = dict.fromkeys("pqtahwc", 1.0)
    tensors = dict(dtype=1, y=to, base=of, terms=[of], weights=[0.5], size=n)
    _C.solver_update_fwd_cpu(**tensors, **numbers, isa=0, threads=threads)
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
