"""The native build on sources of a few lines: what is compiled again, what is said, and that it goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.scripts import load

ROOT = Path(__file__).parents[1]
native_build = load(ROOT / "native_build.py")

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(native_build.find_ninja() is None, reason="no ninja"),
]
BINDINGS = """#include <Python.h>
#ifndef EDM_CUDA_STATUS
#define EDM_CUDA_STATUS ""
#endif
int sum();
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "", 0, nullptr};
PyMODINIT_FUNC PyInit__C() {
    PyObject* m = PyModule_Create(&module);
    PyModule_AddIntConstant(m, "SUM", sum());
    PyModule_AddStringConstant(m, "SOURCES", EDM_SOURCES);
    PyModule_AddStringConstant(m, "STATUS", EDM_CUDA_STATUS);
    return m;
}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with a name that needs quotes, and csrc/ of three files, one of which reads number.h."""
    folder = tmp_path / "a $b"
    (folder / "csrc/cpu").mkdir(parents=True)
    for name in ("setup.py", "native_build.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("edm_fast/__init__.py", "edm_fast/_checkout.py", "kernels/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "csrc/bindings.cpp").write_text(BINDINGS)
    (folder / "csrc/cpu/number.h").write_text("#define NUMBER 2\n")
    (folder / "csrc/cpu/a.cpp").write_text('#include "number.h"\nint one() { return NUMBER; }\n')
    (folder / "csrc/cpu/b.cpp").write_text("int one();\nint sum() { return one() + 40; }\n")
    monkeypatch.setenv("EDM_FAST_CUDA", "0")
    monkeypatch.delenv("MAX_JOBS", raising=False)
    return folder


def build(project, **env):
    """The output, and the names of the objects that were made anew."""
    objects = project / "build/objects"
    before = {path: path.stat().st_mtime_ns for path in objects.rglob("*.o")}
    command = [sys.executable, "setup.py", "build_ext", "--build-temp=build/objects", "--build-lib=build/lib"]
    done = subprocess.run(command, cwd=project, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    after = {path.name for path in objects.rglob("*.o") if before.get(path) != path.stat().st_mtime_ns}
    return done.stdout + done.stderr, {name.removesuffix(".cpp.o") for name in after}


def built(project):
    """(SUM, length of SOURCES, STATUS) of the extension."""
    (path,) = (project / "build/lib/edm_fast").glob("_C.*")
    code = "import importlib.util as u, sys; m = u.module_from_spec(u.spec_from_file_location('_C', sys.argv[1]))"
    command = [sys.executable, "-S", "-c", f"{code}; print(m.SUM, len(m.SOURCES), m.STATUS)", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_what_has_changed_is_compiled(project):
    output, made = build(project, MAX_JOBS="1")
    assert made == {"bindings", "a", "b"}, output
    assert built(project) == "42 64 built without CUDA: EDM_FAST_CUDA=0"
    assert build(project)[1] == set()
    (project / "csrc/cpu/number.h").write_text("#define NUMBER 3\n")
    assert build(project)[1] == {"a", "bindings"}  # which holds the digest of the sources
    (project / "csrc/cpu/b.cpp").write_text("int one();\nint sum() { return one() + }\n")
    output, made = build(project)
    assert "b.cpp:2" in output and "expected primary-expression" in output and "FAILED" in output
    (project / "csrc/cpu/b.cpp").write_text("int one();\nint sum() { return one() + 50; }\n")
    output, made = build(project)
    assert made <= {"b", "bindings"} and "b" in made
    assert built(project).startswith("53 64 ")


def test_a_failure_that_must_not_be(project):
    (project / "csrc/cuda").mkdir()
    (project / "csrc/cuda/x.cu").write_text("int x;\n")
    nvcc = project / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\necho "no such chip" >&2; exit 1\n')
    nvcc.chmod(0o755)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    output, made = build(project, EDM_FAST_CUDA="1", PATH=path)
    assert "EDM_FAST_CUDA=1, but " in output and "no such chip" in output and not [*project.rglob("_C.*")]
    output, _ = build(project, EDM_FAST_CUDA="", PATH=path)
    assert "edm-fast: no CUDA part: " in output and "no such chip" in built(project)


def test_an_interrupted_build_goes_on(tmp_path):
    """Killed while the second of two steps waits: the first stays, and nothing of the second looks finished."""
    (tmp_path / "in").write_text("")
    wait = tmp_path / "wait"
    wait.write_text("")
    pid = tmp_path / "pid"
    waiting = f"while [ -e {wait} ]; do sleep 0.05; done"
    program = f"echo $$ >{pid}; echo run >>{tmp_path}/log; echo half >$0; {waiting}; echo whole >$0"

    def steps():
        first, second, last = (str(tmp_path / "build" / name) for name in ("first", "second", "last"))
        shell, one = ["/bin/sh", "-c"], f"echo one >>{tmp_path}/log; echo 1 >$0"
        return [
            native_build.Step(first, [str(tmp_path / "in")], [*shell, one, first], False),
            native_build.Step(second, [first], [*shell, program, second], False),
            native_build.Step(last, [first, second], [*shell, f"cat {second} >$0", last], False),
        ]

    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            native_build.build(steps(), str(tmp_path / "build"), 2)
        finally:
            os._exit(1)
    second = tmp_path / "build/second"
    deadline = time.monotonic() + 60
    while not (second.exists() and second.read_text() == "half\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.kill(int(pid.read_text()), signal.SIGKILL)  # ninja gives each command a group of its own
    os.waitpid(child, 0)
    wait.unlink()
    native_build.build(steps(), str(tmp_path / "build"), 2)
    assert (tmp_path / "build/last").read_text() == "whole\n"
    assert (tmp_path / "log").read_text().splitlines() == ["one", "run", "run"]


def test_without_ninja_everything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(native_build, "find_ninja", lambda: None)
    (tmp_path / "a.cpp").write_text("int main() { return 0; }\n")
    monkeypatch.chdir(tmp_path)
    step = native_build.Step.compile("a.cpp", "objects", ["g++"], [])
    native_build.build([step, native_build.Step("a", [step.out], ["g++", step.out, "-o", "a"], False)], "objects", 2)
    assert subprocess.run(["./a"]).returncode == 0
    (tmp_path / "a.cpp").write_text("int main() { return }\n")
    with pytest.raises(native_build.CompileError, match="a.cpp:1"):
        native_build.build([step, step], "objects", 2)
