"""Every study by name, found in the files of this folder."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from edm_fast.studies._study import Study


@functools.cache
def registry() -> dict[str, Study]:
    """Name to study: STUDY of the files without an underscore."""
    folder = importlib.import_module(__package__)
    names = [file.name for file in pkgutil.iter_modules(folder.__path__) if not file.name.startswith("_")]
    found = [importlib.import_module(f"{__package__}.{name}").STUDY for name in names]
    return {study.name: study for study in found}
