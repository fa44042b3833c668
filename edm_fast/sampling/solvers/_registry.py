"""Every solver by name, found in the files of this folder."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable

from edm_fast.sampling.loop import Solver


@functools.cache
def registry() -> dict[str, Callable[..., Solver]]:
    """Name to solver: what the files without an underscore have in SOLVERS."""
    found: dict[str, Callable[..., Solver]] = {}
    folder = importlib.import_module(__package__)
    for file in pkgutil.iter_modules(folder.__path__):
        if not file.name.startswith("_"):
            found |= getattr(importlib.import_module(f"{__package__}.{file.name}"), "SOLVERS", {})
    return found
