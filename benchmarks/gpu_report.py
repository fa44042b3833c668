"""Everything that needs a GPU, in one command: build, tests, sanitizer, speed, profile; JSON, Markdown and a chart.

    python benchmarks/gpu_report.py [--parts=ops,networks] [--resume] [--budget=networks=600] [--outdir=out/gpu-report]

No network is needed. The package is installed into the Python that runs this (`pip install --no-deps
--no-build-isolation -e .`), because its torch, Triton and pytest are wanted and a new environment could not see those
of another one. Each part runs in a process of its own, ends at its budget in seconds, and writes PART.json; --resume
leaves finished parts alone and takes up those that were cut. Together the budgets stay under nine minutes.

What does not fit is cut from the end of each part's list (PLACES of _gpu_parts.py) and said in the report: of networks
first max-autotune of all but DDPM++ at batch 64, then torch.compile of the other places, then max-autotune of DDPM++,
then the other batches in eager mode, then torch.compile of DDPM++. Compilers take minutes, so the next thing to do is
`--parts=networks,training --resume --budget=networks=450 --budget=training=100`, as often as something is cut.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {  # seconds
    "build": 65,
    "tests": 105,
    "sanitizer": 25,
    "ops": 60,
    "networks": 145,
    "training": 45,
    "sampling": 45,
    "profile": 20,
}
GRACE = 5  # seconds that a part has to stop by itself
MEASURED = ("ops", "networks", "training", "sampling", "profile")
Part = dict[str, Any]


def write(path: Path, document: Part) -> None:
    """Whole or not at all. The package, which has this function too, may not be installed yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def run(command: list[str], seconds: float, env: dict[str, str] | None = None) -> Part:
    """What a command did: its exit status (None: it ran out of time), seconds, and the end of its output."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, status = process.communicate(timeout=max(seconds, 1))[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with its compilers and workers
        output, status = process.communicate()[0], None
    output = output[-4000:].replace(str(ROOT), ".")
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "output": output}


def installed_here() -> bool:
    """Whether `import edm_fast` finds this checkout, with the compiled part in it."""
    code = (
        "import edm_fast, edm_fast.native as n; print(edm_fast.__file__, n.lib is not None and not n.lib.CUDA_STATUS)"
    )
    done = run([sys.executable, "-c", code], 60)
    return done["status"] == 0 and done["output"].split()[-2:] == [str(ROOT / "edm_fast/__init__.py"), "True"]


def build(args: argparse.Namespace, seconds: float) -> Part:
    """Install, with nvcc's part for the GPU that is here alone; what doctor says of it."""
    deadline = time.monotonic() + seconds
    if args.device == "cuda" and not installed_here():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
        arch = os.environ.get("EDM_FAST_CUDA_ARCH") or capability()
        done = run(pip, seconds, {"EDM_FAST_CUDA": "1", "EDM_FAST_CUDA_ARCH": arch, "PIP_BREAK_SYSTEM_PACKAGES": "1"})
        if done["status"] != 0:
            return {**done, "summary": "the build failed", "ok": False, "complete": False}
    found = run([sys.executable, "-m", "edm_fast", "doctor"], deadline - time.monotonic())
    return {**found, "summary": "installed", "ok": found["status"] == 0, "complete": found["status"] is not None}


def capability() -> str:
    """The chip in the words of nvcc: "90a" for compute capability 9.0."""
    done = run([sys.executable, "-c", "import torch; print('%d%d' % torch.cuda.get_device_capability())"], 60)
    number = done["output"].split()[-1] if done["status"] == 0 else "90"
    return number + "a" if number >= "90" else number


def tests(args: argparse.Namespace, seconds: float) -> Part:
    """Tests of what runs on the GPU first, then the others. On a GPU the Triton tests run compiled."""
    import importlib.util

    deadline, found = time.monotonic() + seconds, {}
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x" if args.quick else "--maxfail=50"]
    if importlib.util.find_spec("pytest_cov"):
        base.append("--no-cov")
    if importlib.util.find_spec("xdist") and not args.quick:
        base.append(f"--numprocesses={min(os.cpu_count() or 1, 8)}")  # all on one GPU
    what = "tests/test_cases.py" if args.quick else "tests"
    for name, marker in (("gpu", "gpu"), ("others", "not gpu")):
        left = deadline - time.monotonic()
        if left < 5:
            found[name] = {"status": None, "seconds": 0, "output": "no time was left"}
            continue
        found[name] = run([*base, "-m", marker, what], left, {"OMP_NUM_THREADS": "1"})
    lines = {name: (part["output"].strip().splitlines() or [""])[-1] for name, part in found.items()}
    ended = all(part["status"] is not None for part in found.values())
    ok = ended and all(part["status"] in (0, 5) for part in found.values())  # 5: no tests
    return {"suites": found, "summary": "; ".join(f"{k}: {v}" for k, v in lines.items()), "ok": ok, "complete": ended}


def sanitizer(args: argparse.Namespace, seconds: float) -> Part:
    """The native CUDA kernels under compute-sanitizer's memcheck, on the small cases of each op."""
    import shutil

    folders = f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    program = shutil.which("compute-sanitizer", path=folders)
    calls = [sys.executable, str(ROOT / "benchmarks/_gpu_parts.py"), "--native-calls", f"--device={args.device}"]
    if program and args.device == "cuda":
        calls = [program, "--tool=memcheck", "--error-exitcode=9", *calls]
    done = run(calls, seconds)
    note = "" if len(calls) > 4 else " (compute-sanitizer is not here: the calls alone)"
    summary = {0: "clean", None: "out of time"}.get(done["status"], "faults") + note
    return {**done, "summary": summary, "ok": done["status"] == 0, "complete": done["status"] is not None}


def measured(name: str) -> Callable[[argparse.Namespace, float], Part]:
    """A part that measures, in a process of its own; it keeps its file up to date, so that its end loses little."""

    def part(args: argparse.Namespace, seconds: float) -> Part:
        path = Path(args.outdir) / f"{name}.json"
        command = [sys.executable, str(ROOT / "benchmarks/_gpu_parts.py"), name, f"--file={path}"]
        command += [f"--device={args.device}", f"--seconds={seconds}", *(["--quick"] if args.quick else [])]
        done = run(command, seconds + GRACE)
        found = json.loads(path.read_text()) if path.exists() else {}
        if done["status"] == 0:
            return found
        why = "out of time" if done["status"] is None else "it failed"
        return {**found, **done, "summary": f"{why}; {found.get('summary', '')}", "ok": False, "complete": False}

    return part


PARTS: dict[str, Callable[[argparse.Namespace, float], Part]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    **{name: measured(name) for name in MEASURED},
}


def finished(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text())["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of " + ", ".join(PARTS))
    parser.add_argument("--resume", action="store_true", help="leave finished parts alone, go on with the others")
    parser.add_argument("--budget", action="append", default=[], metavar="PART=SECONDS")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a trial of the script itself")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few of everything: a trial")
    parser.add_argument("--outdir", default=str(ROOT / "out/gpu-report"), type=lambda text: str(Path(text).resolve()))
    args = parser.parse_args(words)
    args.budgets = dict(BUDGETS)
    for text in args.budget:
        part, _, number = text.partition("=")
        if part not in PARTS or not number.replace(".", "", 1).isdigit():
            parser.error(f"--budget got {text!r}; expected PART=SECONDS")
        args.budgets[part] = float(number)
    args.chosen = [name.strip() for name in args.parts.split(",")]
    if unknown := [name for name in args.chosen if name not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return args


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    outdir = Path(args.outdir)
    for name in args.chosen:
        path = outdir / f"{name}.json"
        if args.resume and finished(path):
            print(f"{name}: finished before", flush=True)
            continue
        if not args.resume and path.exists():
            path.unlink()
        print(f"{name}: at most {args.budgets[name]:.0f} s", flush=True)
        start = time.monotonic()
        part = PARTS[name](args, args.budgets[name])
        write(path, {**part, "part": name, "device": args.device, "part_seconds": round(time.monotonic() - start, 1)})
        print(f"{name}: {part['summary']} ({time.monotonic() - start:.0f} s)", flush=True)
    # last, as it needs the package
    done = run([sys.executable, str(ROOT / "benchmarks/_gpu_pages.py"), str(outdir)], 60)
    print(done["output"], end="")
    return done["status"] or 0


if __name__ == "__main__":
    sys.exit(main())
