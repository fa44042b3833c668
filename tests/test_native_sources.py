"""The rules of CONTRIBUTING.md for csrc/ that need no build: sizes, guards, where intrinsics may stand, includes."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*.*"))
SIMD, KERNELS = CSRC / "cpu/simd", CSRC / "cpu/kernels"
COMPILER = shutil.which("g++") or shutil.which("c++")
INTRINSICS = re.compile(r"\b(_mm\d*_|__m\d|v[a-z]+q_[fs]\d|__builtin_(ia32|aarch64)|immintrin|arm_neon)")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_sizes_guards_and_intrinsics(path):
    text = path.read_text()
    assert path.suffix in {".h", ".cpp", ".cu"}
    assert len(text.splitlines()) <= 400, "the file is too long"
    assert max(map(len, text.splitlines())) <= 120, "a line is too long"
    assert path.suffix != ".h" or "#pragma once" in text, "a header without a guard"
    assert path.parent == SIMD or not INTRINSICS.search(text), "intrinsics belong to csrc/cpu/simd"
    if path.name != "isas.h":
        for part in re.findall(r"^EDM_BEGIN$(.*?)^EDM_END$", text, re.S | re.M):
            assert "#include" not in part, "what is included here is compiled for the instruction set, too"


def test_one_file_for_each_instruction_set():
    rows = re.findall(r"\bISA\((\w+), ", (SIMD / "isas.h").read_text())
    assert sorted(rows) == sorted(path.stem for path in SIMD.glob("*.cpp") if path.stem != "isas")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_headers_include_what_they_use():
    """Each is compiled alone; a kernel after the vectors of an instruction set, which know nothing of the kernels."""
    table = '#include "../kernels/table.h"'
    vectors = (SIMD / "portable.cpp").read_text()
    assert table in vectors

    def compile_alone(path):
        name = path.relative_to(CSRC).as_posix()
        after = path.parent == KERNELS or path.name == "vector.h"
        source = vectors.replace(table, f'#include "../../{name}"') if after else f'#include "../../{name}"\n'
        command = [COMPILER, "-std=c++17", "-fsyntax-only", f"-I{SIMD}", "-x", "c++", "-"]
        return name, subprocess.run(command, input=source, capture_output=True, text=True).stderr

    alone = [path for path in SOURCES if path.suffix == ".h" and path.name not in ("launch.h", "avx512.h")]
    with ThreadPoolExecutor(2) as pool:
        failed = {name: text for name, text in pool.map(compile_alone, alone) if "error" in text}
    assert not failed, next(iter(failed.items()))
