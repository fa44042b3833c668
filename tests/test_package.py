"""The installed package: a quiet import, the guard of kernels/, metadata, and what an sdist and a wheel contain."""

import ast
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import edm_fast
from edm_fast import _checkout
from helpers import tiny_networks

ROOT = Path(__file__).parents[1]


def run(code, **env):
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**keep, **env}, cwd=os.path.sep, capture_output=True, text=True, timeout=120)


def test_import_is_quiet_and_light():
    done = run(
        "import edm_fast, sys; assert 'torch' not in sys.modules; edm_fast.ops; assert 'triton' not in sys.modules"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_names():
    assert {"load", "accelerate", "edm_sampler", "StackedRandomGenerator", "sample_seeds", "save_grid"} <= set(
        dir(edm_fast)
    )
    names = {}
    exec("from edm_fast import *", names)
    assert set(edm_fast.__all__) <= set(names)


def test_what_types_say_is_what_there_is():
    """The names for type checkers are those of __getattr__, and a program that was checked by them runs."""
    tree = ast.parse((ROOT / "edm_fast/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    listed = {alias.name: node.module for node in block.body for alias in node.names if alias.name == alias.asname}
    homes = {name: f"edm_fast.{home}" for name, home in edm_fast._HOMES.items()}
    assert listed == {**homes, **dict.fromkeys(edm_fast._PACKAGES, "edm_fast")} and len(listed) == len(block.body)


def test_the_program_of_a_typed_user_runs(tmp_path, capsys):
    program = runpy.run_path(str(ROOT / "tests/typed_user.py"))
    program["main"](tiny_networks.tiny_checkpoint(tmp_path, label_dim=4), str(tmp_path / "picture.png"))
    assert f"edm-fast {edm_fast.__version__}: " in capsys.readouterr().out and (tmp_path / "picture.png").exists()


@pytest.mark.parametrize(
    ("name", "near"), [("lode", "load"), ("acelerate", "accelerate"), ("EDM_sampler", "edm_sampler"), ("zzz", None)]
)
def test_a_name_that_is_not_there(name, near):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'") as caught:
        getattr(edm_fast, name)
    assert (f"near names: {near}" in str(caught.value)) if near else str(caught.value).endswith("'zzz'")
    with pytest.raises(ImportError):
        exec(f"from edm_fast import {name}")


def test_import_survives_without_the_optional_parts():
    """No compiled part, no triton, and none of the packages that only some verbs need."""
    hidden = ["edm_fast._C", "triton", "lmdb", "tensorboard", "matplotlib", "mlxtend", "sklearn"]
    code = f"""
import sys
for name in {hidden}:
    sys.modules[name] = None
import edm_fast, torch
for name in edm_fast.__all__:
    getattr(edm_fast, name)
x = torch.randn(1, 2, 4, 4)
assert edm_fast.ops.upfirdn(x, torch.full((2, 2), 0.25), down=2).shape == (1, 2, 2, 2)
edm_fast.ops.solver_update(x, x, x, t=2.0)
assert {{choice.backend for choice in edm_fast.explain()}} == {{"reference"}}
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_images_do_not_depend_on_assertions_docstrings_or_the_locale(tmp_path):
    network = tiny_networks.tiny_checkpoint(tmp_path)
    command = ["-m", "edm_fast", "generate", f"--network={network}", "--seeds=0-1", "--steps=2", "--device=cpu"]
    odd = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0"}
    for folder, flags, env in (("plain", [], {}), ("odd", ["-OO", "-X", "utf8=0"], odd)):
        done = subprocess.run(
            [sys.executable, *flags, *command, f"--outdir={tmp_path / folder}"],
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and "2 images in" in done.stdout, done.stderr
    plain, found = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("plain", "odd"))
    assert len(plain) == 2 and found == plain


def test_backend_comes_from_the_environment():
    code = "from edm_fast.ops import upfirdn; import torch; x = torch.ones(1, 1, 2, 2); upfirdn(x, x[0, 0] / 4, down=2)"
    chosen = code + "; import edm_fast; print(edm_fast.explain()[0].backend)"
    assert run(chosen, EDM_FAST_BACKEND="reference").stdout.strip() == "reference"
    refused = run(code, EDM_FAST_BACKEND="triton")
    assert refused.returncode and "triton" in refused.stderr.splitlines()[-1]
    assert "unknown backend" in run(code, EDM_FAST_BACKEND="fastest").stderr.splitlines()[-1]


def test_kernels_refuse_to_be_a_package_of_their_own():
    done = run(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kernels")
    assert done.returncode and "edm_fast.kernels" in done.stderr
    assert run("import edm_fast.kernels").returncode == 0


def test_pytest_may_be_run_as_a_module():
    """The repository root is then on the path, where kernels/ and tests/kernels/ are two."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels", "-k", "numbers_are"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


def test_metadata():
    data = importlib.metadata.metadata("edm-fast")
    assert data["Name"] == "edm-fast" and data["Requires-Python"] == ">=3.10"
    needs = {re.match(r"[\w-]+", line)[0] for line in importlib.metadata.requires("edm-fast") if "extra ==" not in line}
    assert needs == {"torch", "numpy", "scipy", "click", "tqdm", "pillow", "safetensors", "matplotlib", "jinja2"}
    assert set(data.get_all("Provides-Extra")) >= {"gpu", "dev", "lmdb", "tensorboard"}
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="edm-fast")
    assert script.value == "edm_fast.cli:main"
    assert re.search(r"^## 0\.1\.0", (ROOT / "CHANGELOG.md").read_text(), re.M) and data["Version"] == "0.1.0"
    assert f"version: {edm_fast.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a copy of the checkout, `clone`, what is built of it without a compiler, as pure Python, and the
    wheel's contents, `site`."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("built")
    ignore = {"build", "out", "golden", "tests", "benchmarks"}
    files = [p for p in ROOT.rglob("*") if p.is_file() and not p.relative_to(ROOT).parts[0].startswith(".")]
    for path in files:
        part = path.relative_to(ROOT)
        if part.parts[0] not in ignore and path.suffix not in {".so", ".pyc"} and "egg-info" not in str(part):
            (folder / "clone" / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / "clone" / part).write_bytes(path.read_bytes())
    env = {**os.environ, "EDM_FAST_CUDA": "0", "CC": "/nonexistent/cc", "CXX": "/nonexistent/cxx"}
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(folder), "bdist_wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=folder / "clone", env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder


@pytest.mark.slow
def test_sdist_and_wheel(built):
    """The wheel works without a compiled part; the sdist holds the native sources."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.*")}
    files = {"LICENSE", "NOTICE", "CITATION.cff", "SECURITY.md", "edm_fast/py.typed"}
    assert native | {"kernels/__init__.py", "setup.py"} | files <= names
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = set(archive.namelist())
    assets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "edm_fast/assets").glob("*.*")}
    assert assets | {"edm_fast/py.typed", "edm_fast/kernels/__init__.py", "edm_fast/native.py"} <= names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "csrc/"))]
    code = f"""
import sys
# an editable install of this checkout would lend its own compiled part
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(getattr(finder, "__module__", ""))]
sys.path.insert(0, {str(built / "site")!r})
import edm_fast
assert edm_fast.__file__.startswith({str(built / "site")!r})
from edm_fast import kernels, native
print(native.cpu_reason())
"""
    done = run(code)
    assert "the compiled part is not there" in done.stdout and done.stderr == "", done.stderr


def in_clone(built, *command):
    """A Python command of a user who has installed the package, into `site`, and works in the clone."""
    env = {**os.environ, "PYTHONPATH": str(built / "site"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=built / "clone", capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def installed_native(built):
    """This process's compiled part as that of the installed package."""
    from edm_fast import native

    if native.lib is None:
        pytest.skip(str(native.cpu_reason()))
    path = built / "site/edm_fast" / Path(native.lib.__file__).name
    shutil.copy(native.lib.__file__, path)
    yield path
    path.unlink()


def test_the_compiled_part_names_its_sources():
    from edm_fast import native

    if native.lib is None:
        pytest.skip(str(native.cpu_reason()))
    digest = _checkout.digest(str(ROOT / "csrc"))
    assert digest.encode() in Path(native.lib.__file__).read_bytes(), "csrc/ has changed since it was compiled"


def test_beside_an_installed_package_lies_no_checkout(monkeypatch, tmp_path):
    """There, kernels/ and csrc/ may be those of someone else."""
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    for name, path in (("PACKAGE", "edm_fast"), ("NATIVE", "csrc"), ("KERNELS", "kernels")):
        monkeypatch.setattr(_checkout, name, str(tmp_path / path))
        (tmp_path / path).mkdir()
    (tmp_path / "kernels/__init__.py").touch()
    _checkout.install()
    assert sys.meta_path == [_checkout.Finder, PathFinder]
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    (tmp_path / "edm_fast/kernels").mkdir()
    _checkout.install()
    assert sys.meta_path == [PathFinder]


@pytest.mark.slow
def test_in_a_checkout_the_compiled_part_is_that_of_the_installation(built, installed_native, tmp_path):
    where = "from edm_fast import kernels, native; print(kernels.__file__, native.lib.__file__)"
    done = in_clone(built, "-c", where)
    assert done.stdout.split() == [str(built / "clone/kernels/__init__.py"), str(installed_native)]
    assert done.stderr == ""
    draw = in_clone(built, "-m", "edm_fast", "generate", "--seeds=0", "--steps=1", f"--outdir={tmp_path}")
    assert draw.returncode == 0 and "Warning" not in draw.stderr and (tmp_path / "000000.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["other sources", "other line ends", "none"])
def test_a_checkout_says_once_that_it_has_no_compiled_part(built, installed_native, tmp_path, change):
    source = built / "clone/csrc/common.h"
    text = source.read_bytes()
    if change == "none":
        installed_native.rename(tmp_path / "away")
    else:
        source.write_bytes(text + b"//" if change == "other sources" else text.replace(b"\n", b"\r\n"))
    try:
        done = in_clone(built, "-m", "edm_fast", "verify", "--help")
    finally:
        source.write_bytes(text)
        if change == "none":
            (tmp_path / "away").rename(installed_native)
    assert done.returncode == 0
    if change == "other line ends":
        assert done.stderr == ""
        return
    (line,) = done.stderr.splitlines()
    why = "none is installed" if change == "none" else f"{installed_native} was built from other sources"
    assert line.startswith("Warning: edm_fast is the source folder") and why in line and "`pip install .`" in line
