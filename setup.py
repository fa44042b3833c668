"""The package map and the native build: one extension, edm_fast._C, of csrc/. Never imports torch.

For MAX_JOBS, EDM_FAST_CUDA and EDM_FAST_CUDA_ARCH see CONTRIBUTING.md. Without a C++17 compiler it is pure Python.
"""

import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

JOBS = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
CUDA = os.environ.get("EDM_FAST_CUDA", "")
run = functools.partial(subprocess.run, capture_output=True, text=True)
FLAGS = "-std=c++17 -O3 -g0 -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden".split()
FLAGS.append('-DEDM_SOURCES="' + runpy.run_path("edm_fast/_checkout.py")["digest"]("csrc") + '"')


def gencode(arch):
    number = arch.removesuffix("+PTX")
    base = number.rstrip("af")  # PTX for one chip alone would run on no later one
    codes = [(number, f"sm_{number}")] + [(base, f"compute_{base}")] * (number != arch)
    return [f"-gencode=arch=compute_{virtual},code={code}" for virtual, code in codes]


def cuda_objects(folder):
    """Objects of csrc/cuda and the folders of the static CUDA runtime, as nvcc (perhaps a wrapper) itself tells."""
    nvcc = shutil.which("nvcc")
    if not nvcc or CUDA == "0":
        raise RuntimeError("EDM_FAST_CUDA=0" if CUDA == "0" else "no nvcc was found")
    archs = (os.environ.get("EDM_FAST_CUDA_ARCH") or "80;90a+PTX").split(";")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", *(flag for arch in archs for flag in gencode(arch))]
    os.makedirs(folder, exist_ok=True)
    pairs = [(source, f"{folder}/{os.path.basename(source)}.o") for source in sorted(glob("csrc/cuda/*.cu"))]
    with ThreadPoolExecutor(JOBS) as pool:
        for done in pool.map(lambda pair: run([nvcc, *flags, "-c", pair[0], "-o", pair[1]]), pairs):
            if done.returncode:
                raise RuntimeError("nvcc failed: " + done.stderr.strip()[-300:])
    return [out for _, out in pairs], re.findall(r'"-L([^"]+)"', run([nvcc, "-dryrun", "x.cu"]).stderr)


class BuildExt(build_ext):
    def build_extension(self, ext):
        try:
            ext.extra_objects, ext.library_dirs = cuda_objects(f"{self.build_temp}/cuda")
            ext.libraries, ext.define_macros = ["cudart_static", "dl", "rt", "pthread"], [("EDM_WITH_CUDA", None)]
            super().build_extension(ext)
        except Exception as error:
            if CUDA == "1":
                raise SystemExit(f"EDM_FAST_CUDA=1, but {error}") from None
            print(f"edm-fast: no CUDA part: {error}")
            text = re.sub(r'[^ -~]+|["\\]', " ", f"built without CUDA: {error}")
            ext.extra_objects, ext.libraries, ext.define_macros = [], [], [("EDM_CUDA_STATUS", f'"{text}"')]
            super().build_extension(ext)  # optional: without a compiler this is a warning


try:
    import pybind11.setup_helpers

    pybind11.setup_helpers.ParallelCompile(default=JOBS).install()
    extension = Extension("edm_fast._C", sorted(glob("csrc/**/*.cpp", recursive=True)), [pybind11.get_include()])
    extension.extra_compile_args, extension.language, extension.optional = FLAGS, "c++", True
    hide = ["-Wl,--exclude-libs,ALL"] * (sys.platform == "linux")  # the CUDA runtime stays inside
    extension.extra_link_args, extension.depends = hide, glob("csrc/**/*.*", recursive=True)
except ImportError:
    extension = print("edm-fast: pybind11 is not here; installing without the compiled part")

setup(
    packages=[*find_packages(include=["edm_fast", "edm_fast.*"]), "edm_fast.kernels"],
    package_dir={"edm_fast.kernels": "kernels"},
    ext_modules=[extension] if extension else [],
    cmdclass={"build_ext": BuildExt},
)
