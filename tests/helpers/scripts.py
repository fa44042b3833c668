"""Files that are in no package, such as scripts, as modules."""

import importlib.util
import sys


def load(path):
    """The module of a file, by the name of the file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module
