"""Everything that needs a GPU, in one command: build, speed, tests, profile; tables on the terminal, one archive.

    python benchmarks/gpu_report.py [--parts=networks,ops] [--resume] [--seconds=570] [--outdir=out/gpu-report]

No network is needed, and nothing is installed: the compiled part is built into the tree, which is put on the path.
Each part runs in processes of its own and tells each row as soon as it is measured. A row that hangs or kills its
process is noted, and the part goes on behind it; a part that is out of time keeps its rows. Where a disk is full the
numbers are on the terminal all the same: the tables are the last 10,000 characters that are printed.

In --outdir there are gpu-report.tar.gz, with all results, logs and tables of plans, and the page gpu-report.md, written
anew after each part. What serves later calls (caches, results for --resume) is in --workdir.

The parts that are chosen unless --parts says otherwise take one call of 570 seconds together. Calls of their own:

    python benchmarks/gpu_report.py --parts=autotune          torch.compile with max-autotune: seven minutes
    python benchmarks/gpu_report.py --sweep                   blocks of the convolution kernels, layer by layer
    python benchmarks/gpu_report.py --resume                  what was cut
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _gpu_pages as pages
from _gpu_call import BUDGETS, Call, Part, result
from _gpu_places import WARM_PROCESSES, sweep_jobs, warm_jobs
from _gpu_process import ROOT, Event, last_words, run

PROGRAM = ROOT / "benchmarks/_gpu_parts.py"
ALONE = ("sweep", "races", "counters", "autotune")  # in calls of their own
MEASURED = ("networks", "ops", "profile", "training", "sampling", "sweep", "autotune")
GRACE = 10  # seconds that a process has to stop by itself, or to start
GPU_TESTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/ops/test_*_triton.py"))
GPU_TESTS += ["tests/plan/test_gpu.py", "tests/plan/test_replay.py"]


def state_of_build(call: Call) -> str:
    """ "cuda" or "cpu" if the compiled part is there, of these sources; otherwise why not."""
    code = (
        "import edm_fast._checkout as c, edm_fast.native as n; assert n.lib is not None, n.cpu_reason(); "
        "assert n.lib.SOURCES == c.digest(c.NATIVE), 'it was built from other sources'; "
        "print('cpu' if n.lib.CUDA_STATUS else 'cuda')"
    )
    done = run([sys.executable, "-c", code], 60, call.environment())
    return (done["output"].strip().splitlines() or ["it does not start"])[-1][-160:]


def build(call: Call, seconds: float) -> tuple[Part, str]:
    """Compile into the tree, for the GPU that is here alone; without CUDA if that fails."""
    wanted, end, log, why = call.args.device, time.monotonic() + seconds, "", ""
    state = state_of_build(call)
    for cuda in (["1", "0"] if wanted == "cuda" else ["0"]) if state not in (wanted, "cuda") else []:
        if cuda == "0" and state == "cpu":
            break
        settings = {"EDM_FAST_CUDA": cuda}
        if cuda == "1":
            settings["EDM_FAST_CUDA_ARCH"] = os.environ.get("EDM_FAST_CUDA_ARCH") or capability(call)
        left = end - time.monotonic()
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = run(command, left * (0.85 if cuda == "1" else 1.0), {**call.environment(), **settings})
        log, state = log + done["output"], state_of_build(call)
        if state in ("cuda", wanted):
            break
        lines = [line for line in done["output"].splitlines() if "rror" in line] or ["no message"]
        why += f"; EDM_FAST_CUDA={cuda}: " + ("out of time" if done["status"] is None else lines[-1][:160])
    doctor = run([sys.executable, "-m", "edm_fast", "doctor"], max(end - time.monotonic(), 15), call.environment())
    ok = state in ("cuda", wanted)
    summary = f"compiled part: {state}" if ok else f"goes on with what is there: compiled part: {state}{why}"
    return result({**doctor, "output": log + doctor["output"]}, summary, ok=ok, complete=True)


def capability(call: Call) -> str:
    """The chip in the words of nvcc: "90a" for compute capability 9.0."""
    code = "import torch; print(*torch.cuda.get_device_capability())"
    words = run([sys.executable, "-c", code], 60, call.environment())["output"].split()[-2:]
    major, minor = map(int, words) if len(words) == 2 and all(word.isdigit() for word in words) else (9, 0)
    return f"{major}{minor}" + ("a" if major >= 9 else "")


def warm(call: Call, seconds: float) -> tuple[Part, str]:
    """Plans built side by side without measuring, so that their kernels lie compiled in Triton's cache."""
    return side_by_side(call, seconds, warm_jobs(call.args.quick))


def side_by_side(call: Call, seconds: float, jobs: list[tuple[str, int, str]]) -> tuple[Part, str]:
    """Jobs of the part "warm", some processes at a time."""
    end, faults = time.monotonic() + seconds, []

    def job(which: tuple[str, int, str]) -> tuple[str, Part]:
        name, left = f"{which[0]}, batch {which[1]}, {which[2]}", end - time.monotonic()
        if left < GRACE:
            return name, {"status": None, "output": ""}
        words = ["warm", f"--device={call.args.device}", "--job", *map(str, which)]
        words += ["--quick"] if call.args.quick else []
        env = {**call.environment(), "OMP_NUM_THREADS": "1"}
        return name, run([sys.executable, str(PROGRAM), *words], left, env, heard=faults.append)

    with ThreadPoolExecutor(WARM_PROCESSES) as pool:
        done = dict(pool.map(job, jobs))
    failed = [name for name, part in done.items() if part["status"] not in (0, None)]
    cut = [name for name, part in done.items() if part["status"] is None]
    reasons = sorted({f"{event['candidate']}: {event['fault']}" for event in faults if "fault" in event})
    summary = f"{len(jobs) - len(cut) - len(failed)} of {len(jobs)} plans, {len(reasons)} faults of candidates"
    part = {"summary": summary, "ok": not failed, "complete": True, "faults": reasons, "failed": failed, "cut": cut}
    return part, "".join(f"== {name}\n{part['output']}" for name, part in done.items())


def tests(call: Call, seconds: float) -> tuple[Part, str]:
    """Tests of what runs on a GPU, compiled; then all others with that mark. There is a line for each test, so that
    those that had their turn count when time is out."""
    import importlib.util

    end, log, errors, found = time.monotonic() + seconds, "", [], {}
    base = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-rfE", "-p", "no:cacheprovider", "--color=no"]
    base.append("--continue-on-collection-errors")  # of tests of what is not installed there
    if importlib.util.find_spec("pytest_cov"):
        base.append("--no-cov")
    if importlib.util.find_spec("xdist") and not call.args.quick:
        base += [f"--numprocesses={min(os.cpu_count() or 1, 12)}", "--dist=worksteal"]  # all on one GPU
    others = ["-m", "gpu", "tests", *(f"--ignore={path}" for path in GPU_TESTS)]
    complete = True
    for suite in [["tests/test_cases.py"]] if call.args.quick else [GPU_TESTS, others]:
        left = end - time.monotonic()
        if left < GRACE:
            complete = False
            break
        done = run([*base, *suite], left, {**call.environment(), "OMP_NUM_THREADS": "1"})
        log, complete = log + done["output"], complete and done["status"] is not None
        found |= pages.outcomes(done["output"])
        if done["status"] not in (0, 1, 5, None):  # 5: no tests
            errors.append(f"pytest ended with {done['status']}: {done['output'].strip()[-200:]}")
    counts = {word: sum(outcome == word for outcome, _ in found.values()) for word in pages.OUTCOMES}
    failures = [f"{outcome} {test} {why}" for test, (outcome, why) in found.items() if outcome in ("FAILED", "ERROR")]
    summary = ", ".join(f"{count} {word.lower()}" for word, count in counts.items())
    ok = not failures and not errors and counts["PASSED"] > 0
    return {"summary": summary, "ok": ok, "complete": complete, "failures": [*errors, *failures]}, log


def sanitizer(call: Call, seconds: float) -> tuple[Part, str]:
    """The native CUDA kernels under compute-sanitizer's memcheck, called by a program that does without torch."""
    program = shutil.which("compute-sanitizer", path=call.environment()["PATH"])
    command = [sys.executable, str(ROOT / "benchmarks/_gpu_native.py"), f"--device={call.args.device}"]
    checked = program is not None and call.args.device == "cuda"
    if program and checked:
        command = [program, "--tool=memcheck", "--error-exitcode=9", *command]
    done = run(command, seconds, call.environment())
    note = "" if checked else " (compute-sanitizer is not here: the calls alone)"
    word = {0: "clean", 9: "faults", None: "out of time"}.get(done["status"], f"it ended with {done['status']}")
    return result(done, word + note)


def measured(name: str) -> Callable[[Call, float], tuple[Part, str]]:
    """A part that measures row by row. After a row that ended its process another one goes on with the next."""

    def part(call: Call, seconds: float) -> tuple[Part, str]:
        end, log, present = time.monotonic() + seconds, "", ""  # the row that is being measured
        found: Part = {"rows": [], "cut": [], "facts": {}, **call.parts.get(name, {})}
        found |= {"lost": [], "faults": [], "complete": False}

        def heard(event: Event) -> None:
            nonlocal present
            present = event.get("begin", "" if "row" in event else present)
            found["rows"] += [event["row"]] if "row" in event else []
            found["faults"] += [f"{event['candidate']}: {event['fault']}"] if "fault" in event else []
            found["facts"].update(event.get("facts", {}))
            found["cut"] = event.get("left", found["cut"])

        while (left := end - time.monotonic()) > GRACE / 2:
            present, before = "", len(found["rows"])
            done_before = [row["id"] for row in (*found["rows"], *found["lost"])]
            words = [name, f"--device={call.args.device}", *(["--quick"] if call.args.quick else [])]
            text = json.dumps({"done": done_before, "facts": found["facts"]})
            done = run([sys.executable, str(PROGRAM), *words], left, call.environment(), text, heard)
            log += done["output"]
            if done["status"] == 0:
                found |= {"complete": True, "cut": []}
                break
            if done["status"] is None and time.monotonic() > end - 1:
                break
            why = "no result in its time" if done["status"] is None else f"its process ended with {done['status']}"
            if present or len(found["rows"]) == before:
                row = {"id": present or "the start", "reason": f"{why}: {last_words(done['output'])}"}
                found["lost"].append(row)
            if not present and len(found["rows"]) == before:  # another one would end there, too
                break
        good = sum(any(key in row for key in ("median_s", "table", "tflops")) for row in found["rows"])
        found["summary"] = f"{good} rows, {len(found['rows']) - good} with a reason, {len(found['lost'])} lost"
        found["summary"] += f", {len(found['cut'])} cut" if found["cut"] else ""
        return {**found, "ok": not found["lost"] and good > 0}, log

    return part


def sweep(call: Call, seconds: float) -> tuple[Part, str]:
    """Every block of every convolution: compiled side by side, then measured; what was fastest serves from now on."""
    end = time.monotonic() + seconds
    compiled, log = side_by_side(call, seconds / 3, sweep_jobs(call.args.quick))
    part, more = measured("sweep")(call, end - time.monotonic())
    serve(call, {"sweep": part, "races": call.parts.get("races", {})})
    return {**part, "summary": f"{part['summary']}; compiled: {compiled['summary']}"}, log + more


def serve(call: Call, parts: pages.Parts) -> None:
    """What these parts found out about convolutions on this chip is what plans go by from now on."""
    name, document = pages.tuned(parts)
    if call.args.device == "cuda" and document:
        call.store(ROOT / "kernels" / name, document)


def races(call: Call, seconds: float) -> tuple[Part, str]:
    """The convolution in Gluon under Triton's concurrency sanitizer, whose code is another and cached apart. After a
    race no plan takes it, whatever the sweep says."""
    mode = {"TRITON_INSTRUMENTATION_MODE": "consan", "TRITON_CACHE_DIR": str(call.work / "triton-races")}
    command = [sys.executable, str(PROGRAM), "races", f"--device={call.args.device}"]
    events: list[Event] = []
    done = run(command, seconds, {**call.environment(), **mode}, "{}", events.append)
    facts = {key: value for event in events for key, value in event.get("facts", {}).items()}
    if done["status"] in (0, None):
        not_run = [f"not run: {event['not_run']}" for event in events if "not_run" in event]
        return result(done, "out of time" if done["status"] is None else (*not_run, "clean")[0], facts=facts)
    part, log = result(done, last_words(done["output"]), facts={**facts, "tuned": {"boxes": [0]}})
    path = ROOT / "kernels" / pages.tuned({"races": part})[0]
    if path.exists():  # what an earlier call has swept, perhaps
        found = {"facts": {"tuned": json.loads(path.read_text(encoding="utf-8"))}, "complete": True}
        serve(call, {"sweep": call.parts.get("sweep", found), "races": part})
    return part, log


def counters(call: Call, seconds: float) -> tuple[Part, str]:
    """ncu on three kernels: shares of the peaks, waits, occupancy."""
    program = shutil.which("ncu", path=call.environment()["PATH"])
    if program is None:
        return result({"status": 0, "output": ""}, "ncu is not here")
    command = [program, "--clock-control=none", "--kernel-name=regex:^_(conv2d_fwd|group_norm|attention)"]
    command += [f"--section={name}" for name in ("SpeedOfLight", "WarpStateStats", "Occupancy")]
    command += ["--launch-count=6", sys.executable, str(PROGRAM), "counters", f"--device={call.args.device}"]
    done = run(command, seconds, call.environment(), "{}")
    return result(done, {0: "in counters.log", None: "out of time"}.get(done["status"], last_words(done["output"])))


PARTS: dict[str, Callable[[Call, float], tuple[Part, str]]] = {
    "build": build,
    "warm": warm,
    "tests": tests,
    "sanitizer": sanitizer,
    **{name: measured(name) for name in MEASURED},
    "sweep": sweep,
    "races": races,
    "counters": counters,
}
PARTS = {name: PARTS[name] for name in BUDGETS}
SIDE_BY_SIDE = ("build", "warm")  # the one runs compilers for the processor, the other for the GPU


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = ",".join(name for name in PARTS if name not in ALONE)
    parser.add_argument("--parts", default=usual, help="comma-separated, of " + ", ".join(PARTS))
    parser.add_argument("--sweep", action="store_true", help="build, and measure the blocks of convolutions")
    parser.add_argument("--resume", action="store_true", help="go on with the rows that are not measured yet")
    parser.add_argument("--seconds", type=float, default=570, help="for everything; default 570")
    parser.add_argument("--budget", action="append", default=[], metavar="PART=SECONDS")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a trial of the script itself")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few of everything: a trial")
    folder = {"type": lambda text: str(Path(text).resolve())}
    parser.add_argument("--outdir", default=str(ROOT / "out/gpu-report"), **folder)
    parser.add_argument("--workdir", default=str(ROOT / "out/gpu-report/work"), **folder)
    args = parser.parse_args(words)
    args.budgets = dict(BUDGETS)
    for text in args.budget:
        part, _, number = text.partition("=")
        if part not in PARTS or not number.replace(".", "", 1).isdigit():
            parser.error(f"--budget got {text!r}; expected PART=SECONDS")
        args.budgets[part] = float(number)
    args.chosen = (
        ["build", "sweep", "races", "counters"] if args.sweep else [name.strip() for name in args.parts.split(",")]
    )
    if unknown := [name for name in args.chosen if name not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return args


def perform(call: Call, name: str, seconds: float) -> None:
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    start = time.monotonic()
    try:
        part, log = PARTS[name](call, seconds)
    except Exception as error:  # of this script: the other parts go on
        log = f"{type(error).__name__}: {error}"
        part = {"summary": log, "ok": False, "complete": True}
    part["part_seconds"] = round(time.monotonic() - start, 1)
    call.finish(name, part, log)
    print(f"{name}: {part['summary']} ({part['part_seconds']:.0f} s)", flush=True)


def stop(*_: Any) -> None:
    raise SystemExit(143)


def main(words: list[str] | None = None) -> int:
    call = Call(arguments(words))
    todo = [name for name in call.args.chosen if not call.parts.get(name, {}).get("complete")]
    signal.signal(signal.SIGTERM, stop)
    try:
        together = [
            threading.Thread(target=perform, args=(call, name, min(call.args.budgets[name], call.left())), daemon=True)
            for name in todo
            if name in SIDE_BY_SIDE
        ]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
        for name in todo:
            if name not in SIDE_BY_SIDE and call.left() > GRACE:
                perform(call, name, min(call.args.budgets[name], call.left()))
        for name in todo:  # what was cut has the time that is left
            if name in MEASURED and not call.parts.get(name, {}).get("complete") and call.left() > 2 * GRACE:
                perform(call, name, call.left())
    finally:
        print(pages.terminal(call.parts, call.faults), flush=True)
    return 0 if all(part.get("ok") for part in call.parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
