"""The native build of setup.py: one build.ninja for C++ and CUDA, run by ninja; without it the same commands in turn.

ninja knows which headers each object has read, so that a change compiles again what has read it, and a build that was
interrupted goes on.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import NamedTuple

from setuptools.errors import CompileError


class Step(NamedTuple):
    out: str
    inputs: list[str]
    command: list[str]
    headers: bool  # whether the compiler lists what it has read in OUT.d

    @classmethod
    def compile(cls, source: str, folder: str, compiler: list[str], flags: list[str]) -> Step:
        """`source` to an object in the folder, by g++, clang or nvcc."""
        out = f"{folder}/{source}.o"
        listing = "-MD" if source.endswith(".cu") else "-MMD"
        return cls(out, [source], [*compiler, *flags, listing, "-MF", f"{out}.d", "-c", source, "-o", out], True)


def gencode(arch: str) -> list[str]:
    number = arch.removesuffix("+PTX")
    base = number.rstrip("af")  # PTX for one chip alone would run on no later one
    codes = [(number, f"sm_{number}")] + [(base, f"compute_{base}")] * (number != arch)
    return [f"-gencode=arch=compute_{virtual},code={code}" for virtual, code in codes]


def cuda_steps(folder: str) -> tuple[list[Step], list[str]]:
    """What compiles csrc/cuda, and the options that link it, as nvcc (perhaps a wrapper) itself tells."""
    nvcc = shutil.which("nvcc")
    forbidden = os.environ.get("EDM_FAST_CUDA") == "0"
    if not nvcc or forbidden:
        raise RuntimeError("EDM_FAST_CUDA=0" if forbidden else "no nvcc was found")
    archs = (os.environ.get("EDM_FAST_CUDA_ARCH") or "80;90a+PTX").split(";")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", *(flag for arch in archs for flag in gencode(arch))]
    steps = [Step.compile(source, folder, [nvcc], flags) for source in sorted(glob("csrc/cuda/*.cu"))]
    told = subprocess.run([nvcc, "-dryrun", "x.cu"], capture_output=True, text=True).stderr
    return steps, [*re.findall(r'"(-L[^"]+)"', told), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def build(steps: list[Step], folder: str, jobs: int) -> None:
    """Run the commands whose outputs are not up to date, the last one when the others are. CompileError with what a
    failing one has said.
    """
    for step in steps:
        os.makedirs(os.path.dirname(step.out) or ".", exist_ok=True)
    ninja = find_ninja()
    if ninja is None:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda step: run(step.command), steps[:-1]))
        run(steps[-1].command)
        return
    path = f"{folder}/build.ninja"
    text = ninja_file(steps, folder)
    if not os.path.exists(path) or open(path).read() != text:
        with open(path, "w") as file:
            file.write(text)
    run([ninja, "-f", path, f"-j{jobs}"])


def find_ninja() -> str | None:
    try:
        import ninja
    except ImportError:
        return shutil.which("ninja")
    return os.path.join(ninja.BIN_DIR, "ninja")


def ninja_file(steps: list[Step], folder: str) -> str:
    def path(name: str) -> str:
        return re.sub(r"[$ :]", r"$\g<0>", name)

    lines = [f"builddir = {path(folder)}", "rule run", "  command = $words", "  description = $out"]
    lines += ["rule compile", "  command = $words", "  description = $in", "  depfile = $out.d", "  deps = gcc"]
    for step in steps:
        lines.append(
            f"build {path(step.out)}: {'compile' if step.headers else 'run'} {' '.join(map(path, step.inputs))}"
        )
        lines.append(f"  words = {shlex.join(step.command).replace('$', '$$')}")
    return "\n".join(lines) + "\n"


def run(command: list[str]) -> None:
    """Show what the command says as it goes."""
    said: list[str] = []
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    try:
        process = subprocess.Popen(command, **piped)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error.strerror}") from error
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        # ninja says FAILED, then the command, then what that has said
        first = next((number + 2 for number, line in enumerate(said) if line.startswith("FAILED")), 0)
        raise CompileError("".join(said[first:])[:4000] or f"{command[0]} failed without a message")
