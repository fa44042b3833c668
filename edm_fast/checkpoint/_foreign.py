"""Names in a pickle that are not on the allow-list: refused on sight, or kept as inert records.

Nothing of a file is ever imported or called, so neither kind does harm here. What no honest checkpoint holds (functions
that start programs, open files or evaluate text) is refused wherever it stands: such a file should go no further. Any
other name, say the class of a loss that somebody wrote, becomes a `Foreign`: data to look at. Only a network that
contains one cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edm_fast.checkpoint._records import CheckpointError, quote

# modules that start programs, evaluate text or open files
DANGEROUS = {
    *("_io", "_pickle", "_posixsubprocess", "_thread", "atexit", "bdb", "cProfile", "code", "codeop", "commands"),
    *("imp", "io", "marshal", "mmap", "nt", "os", "os.path", "pdb", "pickle", "pkgutil", "popen2", "posix", "pty"),
    *("pydoc", "runpy", "shelve", "shlex", "shutil", "socket", "socketserver", "subprocess", "sys", "tarfile"),
    *("timeit", "webbrowser", "zipfile", "zipimport"),
}
DANGEROUS_PACKAGES = {  # with all that lies below them
    *("asyncio", "cloudpickle", "ctypes", "dill", "distutils", "ftplib", "http", "importlib", "joblib"),
    *("multiprocessing", "pip", "pkg_resources", "requests", "setuptools", "sqlite3", "unittest", "urllib", "xmlrpc"),
    *("numpy.distutils", "numpy.f2py", "numpy.testing", "torch._dynamo", "torch._inductor", "torch.hub", "torch.jit"),
    *("torch.multiprocessing", "torch.package", "torch.testing", "torch.utils.benchmark", "torch.utils.bottleneck"),
    *("torch.utils.collect_env", "torch.utils.cpp_extension", "torch.utils.hipify", "torch.utils.model_zoo"),
}
DANGEROUS_NAMES = {
    *(("numpy", name) for name in ("fromfile", "genfromtxt", "load", "loadtxt", "memmap", "save", "savez", "savetxt")),
    *((module, name) for module in ("operator", "_operator") for name in ("attrgetter", "methodcaller")),
    *(("types", name) for name in ("CodeType", "FunctionType", "LambdaType", "MethodType")),
    *(("torch", name) for name in ("compile", "load", "save")),
    *(("torch.serialization", name) for name in ("load", "save", "_open_file")),
}
BUILTINS = {"__builtin__", "__builtins__", "builtins"}
HARMLESS_BUILTINS = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object", "range"),
    *("set", "slice", "str", "tuple", "unicode", "xrange", "Ellipsis", "NotImplemented"),
}


@dataclass(eq=False)
class Foreign:
    """What a file says about a name, or an object made of it, that the readers do not know."""

    module: str
    name: str
    why: str  # why a network that contains it cannot be read
    args: tuple[Any, ...] | None = None  # None: the bare name
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def instance(self, args: tuple[Any, ...]) -> Foreign:
        """The object that calling it would make, as a record."""
        return Foreign(self.module, self.name, self.why, args)


def refuse_global(module: str, name: str) -> CheckpointError:
    return CheckpointError(f"refused: it asks for {quote(module)} {quote(name)}, which no checkpoint needs")


def foreign(module: str, name: str) -> Foreign:
    """The record of an unknown name; CheckpointError if it is refused on sight."""
    parts = module.split(".")
    below = {".".join(parts[: i + 1]) for i in range(len(parts))}
    harmless = name in HARMLESS_BUILTINS or name.endswith(("Error", "Exception", "Warning"))
    if (
        not all(part.isidentifier() for part in (*parts, name))  # a dotted name reaches through a module
        or module in DANGEROUS
        or below & DANGEROUS_PACKAGES
        or (module, name) in DANGEROUS_NAMES
        or (parts[0] in BUILTINS and not harmless)
    ):
        raise refuse_global(module, name)
    return Foreign(
        module, name, f"it asks for {quote(module)} {quote(name)}, which edm-fast does not know (nothing of it was run)"
    )


def canonical(module: str, name: str) -> tuple[str, str]:
    """The published name of what a fork keeps in another package, and one place for this package's own classes."""
    for known in ("torch_utils.persistence", "dnnlib.util"):
        if module.endswith("." + known):
            return known, name
    for own in ("edm_fast.networks", "edm_fast.plan"):
        if module.startswith(own + "."):
            return own, name
    return module, name
