"""The rules of CONTRIBUTING.md that a parser can check: layers, one name per op everywhere, sizes, environment."""

import ast
import graphlib
import importlib
import re
from pathlib import Path

import pytest

import edm_fast

ROOT = Path(__file__).parents[1]
LAYERS = [  # an import points to a later line; names on one line do not know each other
    {"__main__"},
    {"cli"},
    {"studies"},
    {"training", "evaluation"},
    {"interop"},
    {"sampling", "plan"},
    {"checkpoint", "data"},
    {"networks"},
    {"cases"},
    {"ops", "diffusion"},
    {"backend", "native"},
    {"files", "distributed", "pictures", "pages"},
    {"errors", "timing", "_checkout"},
    {"kernels", "_C"},
]
ENVIRONMENT = {"EDM_FAST_BACKEND", "EDM_FAST_CACHE_DIR", "EDM_FAST_JOIN_TIMEOUT"}
BUILD_ENVIRONMENT = {"EDM_FAST_CUDA", "EDM_FAST_CUDA_ARCH"}
PACKAGE = sorted((ROOT / "edm_fast").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
OPS = sorted(p.parent.name for p in (ROOT / "edm_fast/ops").glob("*/__init__.py"))


def layer(module):
    """The line of a dotted module name in LAYERS; None for the package itself and names outside it."""
    parts = module.split(".")
    if parts[0] != "edm_fast" or len(parts) == 1:
        return None
    return next((line for line, names in enumerate(LAYERS) if parts[1] in names), None)


def module_name(path):
    parts = (
        ("edm_fast", "kernels", path.stem)
        if path.parent.name == "kernels"
        else path.relative_to(ROOT).with_suffix("").parts
    )
    return ".".join(part for part in parts if part != "__init__")


def imports(path):
    """Every dotted name a file imports, with `from a import b` as a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists() or alias.name in {"_C", "kernels"}
                yield f"{node.module}.{alias.name}" if is_module else node.module


def fault(path, target):
    """Why a file may not import a module, or None. The package's own __init__ holds names alone."""
    name = module_name(path)
    here, there = layer(name), layer(target)
    if not target.startswith("edm_fast.") or name == "edm_fast":
        return None
    if target == "edm_fast.testing":
        return "nothing in the package imports edm_fast.testing"
    if there is None or here is None:
        return f"{name if here is None else target} has no layer"
    if there > here:
        return None
    if there < here:
        return "upward"
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    if not target.startswith(f"{folder}."):
        # a folder inside of another builds on the files beside it
        beside = target.rpartition(".")[0]
        return None if folder.startswith(f"{beside}.") and not folder.startswith(target) else "sideways"
    inner = target.removeprefix(f"{folder}.")
    # the implementations of an op build on its definition
    shared = inner.startswith("_") or (folder.startswith("edm_fast.ops.") and inner == "reference")
    if path.name != "__init__.py" and not shared:
        return "sideways, to a public file"
    return None


def test_the_check_finds_faults():
    ops = ROOT / "edm_fast/ops"
    cpu = ops / "upfirdn/cpu.py"
    assert fault(cpu, "edm_fast.networks") == "upward"
    assert fault(cpu, "edm_fast.ops.upfirdn.triton") == "sideways, to a public file"
    for other in ("edm_fast.ops", "edm_fast.ops.upfirdn", "edm_fast.ops.conv2d.reference"):
        assert fault(cpu, other) == "sideways"
    solvers = ROOT / "edm_fast/sampling/solvers"
    assert fault(solvers / "edm.py", "edm_fast.sampling") == "sideways"
    assert fault(solvers / "edm.py", "edm_fast.sampling.solvers") == "sideways"
    assert fault(solvers / "edm.py", "edm_fast.sampling.solvers.ablation") == "sideways, to a public file"
    assert fault(solvers / "edm.py", "edm_fast.sampling.loop") is None
    assert fault(solvers / "__init__.py", "edm_fast.sampling.loop") is None
    assert fault(cpu, "edm_fast.diffusion.loss") == "sideways"
    assert fault(cpu, "edm_fast.nowhere") == "edm_fast.nowhere has no layer"
    for fine in ("edm_fast.ops._check", "edm_fast.ops.upfirdn.reference", "edm_fast.kernels.upfirdn", "torch"):
        assert fault(cpu, fine) is None
    assert fault(ops / "__init__.py", "edm_fast.ops.conv2d") is None
    assert fault(ROOT / "edm_fast/files.py", "edm_fast.testing")


@pytest.mark.parametrize("path", PACKAGE + KERNELS, ids=module_name)
def test_imports_point_down(path):
    if path.name == "testing.py" or path.parent.name == "kernels":
        allowed = "edm_fast.cases" if path.name == "testing.py" else "edm_fast.kernels"
        assert not [name for name in imports(path) if name.startswith("edm_fast") and not name.startswith(allowed)]
        return
    faults = {target: why for target in imports(path) if (why := fault(path, target))}
    assert not faults


def test_one_name_per_op():
    shared = {"algorithms", "arguments", "common", "bindings", "functions", "parallel", "errors", "launch"}
    files = [p for folder in ("csrc", "csrc/cpu", "csrc/cuda") for p in (ROOT / folder).glob("[!_]*.*")]
    native = {p.stem.removesuffix("_bwd") for p in files} - shared
    assert native <= set(OPS), f"native files of no op: {native - set(OPS)}"
    triton = {p.stem for p in KERNELS if not p.name.startswith("_")}
    assert triton <= set(OPS), f"kernel files of no op: {triton - set(OPS)}"


@pytest.mark.parametrize(
    "path", [*PACKAGE, *KERNELS, ROOT / "setup.py"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_sizes_and_environment(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (80 if path.name == "setup.py" else 400), "the file is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"
    allowed = BUILD_ENVIRONMENT if path.name == "setup.py" else ENVIRONMENT | BUILD_ENVIRONMENT
    found = set(re.findall(r"EDM_FAST_[A-Z_]+[A-Z]", text))
    assert found <= allowed, f"environment variables {found - allowed}"


SOURCES = [
    path
    for folder in ("csrc", "kernels", "edm_fast", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".h", ".inc", ".cpp", ".cu"} and "golden" not in path.parts
]


def test_lines_and_files_are_short():
    """120 columns everywhere; 400 lines of what is compiled or installed."""
    wide, long = [], []
    for path in SOURCES:
        lines = path.read_text().splitlines()
        wide += [f"{path}:{number}" for number, line in enumerate(lines, 1) if len(line) > 120]
        long += [str(path)] * (len(lines) > 400 and "tests" not in path.parts)
    assert not wide and not long


def circle(edges):
    """A circle of imports among {module: modules}, or None."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_import_cycle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}})
    modules = {module_name(path): path for path in PACKAGE + KERNELS}
    assert not circle({name: modules.keys() & set(imports(path)) - {"edm_fast"} for name, path in modules.items()})


def shared_names(definitions):
    """Names that several of (name, file) define."""
    homes = {}
    for name, path in definitions:
        homes.setdefault(name, set()).add(path)
    return {name for name, paths in homes.items() if len(paths) > 1}


def test_no_two_public_things_of_one_name():
    """No two classes in the package, and no two things that its packages export."""
    assert shared_names([("A", 1), ("B", 1), ("A", 2), ("B", 1)]) == {"A"}
    trees = [(path, ast.parse(path.read_text())) for path in PACKAGE]
    classes = [(node.name, path) for path, tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert not shared_names((name, path) for name, path in classes if not name.startswith("_"))
    packages = [importlib.import_module(f"edm_fast.{name}") for name in edm_fast._PACKAGES]
    exported = {(name, id(getattr(package, name))) for package in packages for name in getattr(package, "__all__", ())}
    assert not shared_names(exported)


def test_nothing_is_unpickled():
    """torch.load and pickle run what a file says, or have done so."""
    loads = re.compile(r"\b(torch|pickle|joblib)\.(load|loads)\(|\bUnpickler\(|allow_pickle=True")
    assert [path for path in PACKAGE if loads.search(path.read_text())] == []


def test_setup_never_imports_torch():
    assert "torch" not in {name.split(".")[0] for name in imports(ROOT / "setup.py")}


def test_only_the_bindings_see_python():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".h", ".cpp", ".cu"}:
            text = path.read_text()
            assert not re.search(r"\b(at|c10|torch)::|#include <(torch|ATen|c10)", text), path
            assert path.name == "bindings.cpp" or "pybind11" not in text, path


def test_files_named_in_the_glossary_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:edm_fast|csrc|kernels|tests|benchmarks)/[\w./]*)`", text)
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []
