"""How soon the program starts: what it does not import, and its time beside that of importing torch."""

import os
import resource
import subprocess
import sys

import pytest

# torch's compiler and what that brings take seconds; none of them is needed to draw images
LATE = {
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "scipy",
    "triton",
    "matplotlib",
    "jinja2",
    "lmdb",
    "onnx",
    "concurrent.futures.process",
}
IMPORTED = "import sys; from edm_fast.cli import main; main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"


def output(code, *args):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # which imports Triton
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(code, *args):
    """Of the processor, for a whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output(code, *args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_little(option):
    imported = set(output(IMPORTED, option).splitlines()[-1].split())
    assert not imported & {"torch", "numpy", "PIL", "importlib.metadata"}
    assert len({name for name in imported if name.startswith("edm_fast.")}) < 10


def test_images_are_drawn_soon(tmp_path):
    """The whole of one image in one step takes little more time than `import torch`; measured when nothing is tuned."""
    draw = ["generate", f"--outdir={tmp_path}", "--seeds=0", "--steps=1", "--device=cpu"]
    late = LATE & set(output(IMPORTED, *draw).splitlines()[-1].split())
    assert not late
    found = []
    while not found or (found[-1] > 1.3 and len(found) < 5):  # the machine may be busy for a moment
        found.append(seconds(IMPORTED.replace("; print(*sys.modules)", ""), *draw) / seconds("import torch"))
    assert found[-1] <= 1.3, found
