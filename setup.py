"""The package map and the native build: one extension, edm_fast._C, of csrc/. Never imports torch.

For MAX_JOBS, EDM_FAST_CUDA and EDM_FAST_CUDA_ARCH see CONTRIBUTING.md. Without a C++17 compiler it is pure Python.
"""

import os
import re
import runpy
import sys
from glob import glob
from sysconfig import get_platform

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

native = runpy.run_path("native_build.py")
JOBS = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
CUDA = os.environ.get("EDM_FAST_CUDA", "")
FLAGS = "-std=c++17 -O3 -g0 -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden".split()
BINDINGS = "csrc/bindings.cpp"
SOURCES = '-DEDM_SOURCES="' + runpy.run_path("edm_fast/_checkout.py")["digest"]("csrc") + '"'


class BuildExt(build_ext):
    def finalize_options(self):
        # a folder that stays: pip gives its own, which does not
        self.objects = self.build_temp or f"build/native-{get_platform()}-{sys.implementation.cache_tag}"
        super().finalize_options()

    def build_extension(self, ext):
        try:
            cuda, libraries = native["cuda_steps"](self.objects)
            self.build_all(ext, ["-DEDM_WITH_CUDA"], cuda, libraries)
        except Exception as error:
            if CUDA == "1":
                raise SystemExit(f"EDM_FAST_CUDA=1, but {error}") from None
            print(f"edm-fast: no CUDA part: {error}")
            text = re.sub(r'[^ -~]+|["\\]', " ", f"built without CUDA: {error}")[:300]
            self.build_all(ext, [f'-DEDM_CUDA_STATUS="{text}"'], [], [])  # without a compiler this is a warning

    def build_all(self, ext, define, steps, libraries):
        compiler = self.compiler
        cxx = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so
        link = getattr(compiler, "linker_so_cxx", None) or [*compiler.compiler_cxx[:1], *compiler.linker_so[1:]]
        # pip has a new folder for pybind11 each time, which must not count as a change of all commands
        own = [*(f"-I{folder}" for folder in dict.fromkeys([*ext.include_dirs, *self.include_dirs])), SOURCES, *define]
        for source in ext.sources:
            flags = FLAGS + (own if source == BINDINGS else [])
            steps = [*steps, native["Step"].compile(source, self.objects, cxx, flags)]
        objects, out = [step.out for step in steps], self.get_ext_fullpath(ext.name)
        hide = ["-Wl,--exclude-libs,ALL"] * (sys.platform == "linux")  # the CUDA runtime stays inside
        steps.append(native["Step"](out, objects, [*link, *objects, *libraries, *hide, "-o", out], False))
        native["build"](steps, self.objects, JOBS)


try:
    import pybind11

    extension = Extension("edm_fast._C", sorted(glob("csrc/**/*.cpp", recursive=True)), [pybind11.get_include()])
    extension.optional, extension.depends = True, glob("csrc/**/*.*", recursive=True)
except ImportError:
    extension = print("edm-fast: pybind11 is not here; installing without the compiled part")

setup(
    packages=[*find_packages(include=["edm_fast", "edm_fast.*"]), "edm_fast.kernels"],
    package_dir={"edm_fast.kernels": "kernels"},
    ext_modules=[extension] if extension else [],
    cmdclass={"build_ext": BuildExt},
)
