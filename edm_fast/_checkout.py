"""The package in a checkout: the source folder edm_fast/ holds neither kernels/ nor, unless installed with `-e`, _C.

A process started beside it (`python -m edm_fast`) finds that folder before the installed package. There
`edm_fast.kernels` is the kernels/ of the checkout, and `edm_fast._C` that of the installed package if it was built
from the same csrc/.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from types import ModuleType

PACKAGE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(PACKAGE)
KERNELS = os.path.join(ROOT, "kernels")
NATIVE = os.path.join(ROOT, "csrc")


class CheckoutWarning(UserWarning):
    """The package runs from a checkout without a compiled part."""


def digest(folder: str) -> str:
    """Names the native sources in a folder, whatever their line ends; setup.py puts it into the compiled part."""
    import hashlib  # late: every start of the program would wait for it

    names = [os.path.join(where, name) for where, _, files in os.walk(folder) for name in files]
    found = hashlib.sha256()
    for name in sorted(name for name in names if name.endswith((".h", ".inc", ".cpp", ".cu"))):
        with open(name, "rb") as file:
            found.update(os.path.relpath(name, folder).replace(os.sep, "/").encode() + b"\0")
            found.update(file.read().replace(b"\r\n", b"\n") + b"\0")
    return found.hexdigest()


class Finder:
    """Finds what the source folder lacks."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "edm_fast.kernels":
            return spec_from_file_location(
                name, os.path.join(KERNELS, "__init__.py"), submodule_search_locations=[KERNELS]
            )
        return compiled(name) if name == "edm_fast._C" and not PathFinder.find_spec(name, [PACKAGE]) else None


def compiled(name: str) -> ModuleSpec:
    """The installed compiled part; ImportError, and a warning, if there is none for these sources."""
    found = PathFinder.find_spec(name, [os.path.join(folder, "edm_fast") for folder in sys.path])
    if found is not None and found.origin is not None:
        with open(found.origin, "rb") as file:
            if digest(NATIVE).encode() in file.read():
                return found
    why = "none is installed" if found is None else f"{found.origin} was built from other sources"
    line = (
        f"edm_fast is the source folder in {ROOT}, without a compiled part ({why}), which is slower; "
        "expected `pip install .` there, with a C++17 compiler, or a start in another folder"
    )
    warnings.warn_explicit(line, CheckoutWarning, PACKAGE, 0)  # without a line of code under it
    raise ImportError(line)


def install() -> None:
    """Add the finder where this is a checkout. The usual one comes after it, and would take any _C on the path.

    Beside an installed package, which has its kernels inside, there may be a kernels/ of someone else.
    """
    inside = os.path.isdir(os.path.join(PACKAGE, "kernels"))
    if not inside and os.path.isdir(NATIVE) and os.path.isfile(os.path.join(KERNELS, "__init__.py")):
        sys.meta_path.insert(sys.meta_path.index(PathFinder), Finder)  # type: ignore[arg-type]
