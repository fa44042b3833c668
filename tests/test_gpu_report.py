"""make gpu-report without a GPU: each part's path on tiny networks; and what is left of parts that hang, die or meet a
full disk, of compilers that fail, of a call that is out of time."""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _gpu_call  # noqa: E402
import _gpu_ops  # noqa: E402
import _gpu_pages  # noqa: E402
import _gpu_parts  # noqa: E402
import _gpu_places  # noqa: E402
import _gpu_sweep  # noqa: E402
import gpu_report  # noqa: E402
from _gpu_process import run  # noqa: E402

from edm_fast import native  # noqa: E402
from edm_fast.evaluation import _targets  # noqa: E402
from edm_fast.evaluation._rows import ROWS  # noqa: E402
from edm_fast.ops import _triton  # noqa: E402

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
TRIAL = argparse.Namespace(device="cpu", quick=True)


@pytest.fixture
def told(monkeypatch):
    """What the parts tell, as the parent has it."""
    part = {"rows": [], "facts": {}, "complete": True, "ok": True, "summary": "done", "cut": [], "begun": []}
    part["events"] = []

    def tell(**event):
        part["events"].append(event)
        part["rows"] += [event["row"]] if "row" in event else []
        part["facts"].update(event.get("facts", {}))
        part["cut"] = event.get("left", part["cut"])
        part["begun"] += [event["begin"]] if "begin" in event else []

    monkeypatch.setattr(_gpu_parts, "tell", tell)
    return part


def call_of(tmp_path, *words):
    args = ["--device=cpu", "--quick", f"--outdir={tmp_path}", f"--workdir={tmp_path}/work", *words]
    return gpu_report.Call(gpu_report.arguments(args))


@needs_native
def test_every_part_that_measures(told, monkeypatch):
    monkeypatch.setattr(_targets, "STEPS", 2)
    monkeypatch.setattr(_gpu_parts.bench, "MIN_TURN", 0.0)
    parts = {}
    for name in ("networks", "training", "sampling", "ops", "profile"):
        told |= {"rows": [], "facts": {}, "cut": []}
        work = getattr(_gpu_parts, name, None) or (lambda *args, name=name: _gpu_parts.places(name, *args))
        work(TRIAL, {"done": [], "facts": {}})
        parts[name] = {**told}
        assert told["rows"] and not told["cut"], name
    rows = {entry["row"]: entry for entry in parts["networks"]["rows"]}
    assert rows["accelerate-fp32"]["ratio"] > 0 and "expected one of" in rows["accelerate-fp16"]["reason"]
    assert 1e-4 < rows["fused-half-bf16"]["error"] < 0.1 and rows["reference-tf32"]["error"] == 0
    assert parts["networks"]["facts"]["flops"]["demo"] > 1e8
    measured = {(row["op"], row["backend"]) for row in parts["ops"]["rows"] if "ratio" in row}
    assert {("solver_update", "cpu"), ("upfirdn", "cpu"), ("conv2d", "cpu")} <= measured
    assert ("attention", "scaled_dot_product_attention") in measured
    assert all(row["bit_stable"] for row in parts["ops"]["rows"] if row["backend"] == "cpu" and "ratio" in row)
    assert all(row["table"] for row in parts["profile"]["rows"])

    page, shown = _gpu_pages.page(parts, []), _gpu_pages.terminal(parts, [])
    for text in ("## Ops", "## Networks", "## Training", "## Sampling", "## Kernels", "TFLOP/s"):
        assert text in page
    assert "accelerate-fp32" in shown and shown.splitlines()[-1].startswith("profile    ok")
    for text in _gpu_pages.documents(parts).values():  # as bench itself writes them
        document = json.loads(text)
        assert document["rows"] and {entry["row"] for entry in document["rows"]} <= set(ROWS)

    # what is done is not measured again
    told |= {"rows": [], "begun": []}
    done = [row["id"] for row in parts["networks"]["rows"][1:]]
    _gpu_parts.places("networks", TRIAL, {"done": done, "facts": parts["networks"]["facts"]})
    assert [row["row"] for row in told["rows"]] == ["reference"]


def test_plans_take_the_kernel_in_gluon_where_the_sweep_has_proved_it(told, tmp_path, monkeypatch):
    """The direct kernel stands for it: it is right, or wrong, or never ends, which ends the process before the row."""
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import _conv2d_tuned, conv2d

    monkeypatch.setattr(_gpu_sweep, "blocks", lambda layer, quick: [])
    monkeypatch.setattr(_conv2d_tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(_conv2d_tuned, "_name", lambda device: "cpu")
    image, weight = torch.ones(1, 16, 4, 4), torch.ones(16, 16, 3, 3)
    assert conv2d.boxes_reason(image, weight, 1) is not None
    monkeypatch.setattr(conv2d, "boxes_reason", lambda *args, proved=False: None if proved else "not yet")
    for factor, proved in ((1.0, True), (2.0, False)):
        monkeypatch.setattr(conv2d, "in_boxes", lambda *args, factor=factor: factor * conv2d.forward(*args))
        told |= {"rows": [], "facts": {}}
        _gpu_parts.sweep(TRIAL, {"done": [], "facts": {}})
        assert ("boxes" in told["rows"][0]["tflops"]) == proved
        (tmp_path / "tuned-cpu.json").write_text(_gpu_pages.tuned({"sweep": told})[1])
        _conv2d_tuned._known.cache_clear()
        assert (_conv2d_tuned.unproved("boxes", torch.device("cuda")) is None) == proved and _conv2d_tuned.table(
            "cpu"
        ) == {}

    def ends(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(conv2d, "in_boxes", ends)
    told |= {"rows": [], "facts": {}}
    with pytest.raises(KeyboardInterrupt):
        _gpu_parts.sweep(TRIAL, {"done": [], "facts": {}})
    assert not told["rows"]
    _gpu_parts.sweep(TRIAL, {"done": [], "facts": told["facts"]})
    assert told["facts"]["tuned"]["boxes"] == [0] and "boxes" not in told["rows"][0]["tflops"]


@pytest.mark.parametrize("hangs, serves", [("boxes", "winograd-early"), ("winograd-early", "boxes")])
def test_a_way_that_never_ends_is_the_one_that_is_not_proved(told, monkeypatch, hangs, serves):
    """The other has its layers, that one, too, which is begun again; what ends the process later does not count."""
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import conv2d

    layers = [_gpu_sweep.Layer(1, 16, 4, 4, outputs, 3) for outputs in (16, 32, 48)]
    monkeypatch.setattr(_gpu_parts, "_swept", lambda quick: layers)
    monkeypatch.setattr(_gpu_sweep, "blocks", lambda layer, quick: [])
    monkeypatch.setattr(conv2d, "boxes_reason", lambda *args, proved=False: None)
    monkeypatch.setattr(conv2d, "early_reason", lambda *args, proved=False: None)
    winograd, finish, planted = conv2d.winograd, conv2d.finish, {hangs: 32}

    def ends(way, outputs):
        if planted.get(way) == outputs:
            raise KeyboardInterrupt

    def in_boxes(x, packed, *args):
        ends("boxes", packed.shape[0])
        return conv2d.forward(x, packed, *args)

    def early(x, packed, *args, early=False, **kwargs):
        ends("winograd-early" if early else "", packed[0].shape[1])
        return winograd(x, packed, *args, **kwargs)

    def tail(y, *args, **kwargs):
        ends("tail", y.shape[1])
        return finish(y, *args, **kwargs)

    for name, function in (("in_boxes", in_boxes), ("winograd", early), ("finish", tail)):
        monkeypatch.setattr(conv2d, name, function)

    def process():
        """One that goes on where the last one ended, as the parent has it."""
        begun, told["rows"] = [row["id"] for row in told["rows"]], [*told["rows"]]
        done = [*begun, *(row["id"] for row in told.get("lost", []))]
        try:
            _gpu_parts.sweep(TRIAL, {"done": done, "facts": json.loads(json.dumps(told["facts"]))})
        except KeyboardInterrupt:
            told.setdefault("lost", []).append({"id": told["begun"][-1]})

    process()
    assert [row["id"] for row in told["lost"]] == [layers[1].name()] and len(told["rows"]) == 1
    planted["tail"] = 48
    process()
    assert [row["id"] for row in told["lost"]] == [layer.name() for layer in layers[1:]]
    process()
    assert [row["id"] for row in told["rows"]] == [layer.name() for layer in layers[:2]]
    assert [serves in row["tflops"] for row in told["rows"]] == [True] * 2
    assert told["facts"]["tuned"] == {hangs: [0], serves: [1]}

    def served(**changes):
        return json.loads(_gpu_pages.tuned({"sweep": {**told, **changes}})[1])

    assert served() == {hangs: [0]}  # a layer has not been measured
    assert served(lost=told["lost"][:1]) == {hangs: [0], serves: [1]}
    assert served(lost=told["lost"][:1], complete=False) == {hangs: [0]}


def test_what_a_graph_computes_is_compared_as_well(told, monkeypatch):
    """Early launches overlap there: calls one by one may be right where these are not."""
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import conv2d

    monkeypatch.setattr(_gpu_sweep, "blocks", lambda layer, quick: [])
    monkeypatch.setattr(conv2d, "early_reason", lambda *args, proved=False: None)
    winograd, calls = conv2d.winograd, []

    def wrong_after_the_first(*args, early=False, **kwargs):
        calls.extend([early] * early)
        return winograd(*args, **kwargs) * (2.0 if early and len(calls) > 1 else 1.0)

    monkeypatch.setattr(conv2d, "winograd", wrong_after_the_first)
    _gpu_parts.sweep(TRIAL, {"done": [], "facts": {}})
    assert told["facts"]["tuned"]["winograd-early"] == [0] and "winograd-early" not in told["rows"][0]["tflops"]
    assert "winograd" in told["rows"][0]["tflops"]
    faults = [event for event in told["events"] if "winograd-early" in event.get("candidate", "")]
    assert len(faults) == 1 and "its error is" in faults[0]["fault"]


def test_the_result_of_a_graph_is_that_of_its_last_replay(monkeypatch):
    class Graph:
        """Its replays write where its result lies."""

        def __init__(self, function, device, beside=None):
            self.function = function
            self.function()

        def __call__(self):
            y.add_(1)

    y = torch.zeros(1)
    monkeypatch.setattr(_gpu_sweep, "Captured", Graph)
    monkeypatch.setattr(_gpu_sweep, "memory", lambda device: None)
    monkeypatch.setattr(_gpu_sweep.timing, "gpu_clock", lambda call, repeats: call() or 10.0)
    seconds, last = _gpu_sweep.timed(lambda: y, torch.device("cuda"))
    assert seconds == 10.0 / _gpu_sweep.CALLS and last is y and y == _gpu_sweep.REPLAYS


def test_plans_launch_early_where_the_sweep_has_proved_it(told, tmp_path, monkeypatch):
    """It stays unproved when one layer had another result."""
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import _conv2d_tuned, conv2d

    layers = [_gpu_sweep.Layer(1, 16, 4, 4, outputs, 3) for outputs in (16, 32)]
    monkeypatch.setattr(_gpu_parts, "_swept", lambda quick: layers)
    monkeypatch.setattr(_gpu_sweep, "blocks", lambda layer, quick: [])
    monkeypatch.setattr(_conv2d_tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(_conv2d_tuned, "_name", lambda device: "cpu")
    monkeypatch.setattr(conv2d, "early_reason", lambda *args, proved=False: None if proved else "not yet")
    winograd = conv2d.winograd
    for wrong in (None, 16, 32):

        def early(x, packed, *args, early=False, wrong=wrong, **kwargs):
            return (2.0 if early and packed[0].shape[1] == wrong else 1.0) * winograd(x, packed, *args, **kwargs)

        monkeypatch.setattr(conv2d, "winograd", early)
        told |= {"rows": [], "facts": {}}
        _gpu_parts.sweep(TRIAL, {"done": [], "facts": {}})
        (tmp_path / "tuned-cpu.json").write_text(_gpu_pages.tuned({"sweep": told})[1])
        _conv2d_tuned._known.cache_clear()
        assert (_conv2d_tuned.unproved("winograd-early", torch.device("cuda")) is None) == (wrong is None)
        assert ("winograd-early" in told["rows"][0]["tflops"]) == (wrong != 16)


def test_the_sweep_finds_blocks_that_convolutions_then_go_by(told, tmp_path, monkeypatch):
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import _conv2d_tuned, conv2d

    _gpu_parts.sweep(TRIAL, {"done": [], "facts": {}})
    (row,) = told["rows"]
    assert (
        {"cudnn", "cudnn+passes", "tail", "winograd", "winograd-bmm"} < row["tflops"].keys()
        and row["share"] > 0
        and not told["cut"]
    )
    name, text = _gpu_pages.tuned({"sweep": told})
    assert name == "tuned-cpu.json" and "3x3, 16 to 16 at 1x4x4" in _gpu_pages.terminal({"sweep": told}, [])
    (tmp_path / "tuned-nvidia-h200.json").write_text(text)
    monkeypatch.setattr(_conv2d_tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(_conv2d_tuned, "_name", lambda device: "NVIDIA H200")
    _conv2d_tuned._known.cache_clear()
    x = argparse.Namespace(is_cuda=True, device="cuda", dtype=torch.bfloat16)
    sizes = (16, 16, 16, 9, 1)
    (plan,) = _gpu_sweep.blocks(_gpu_parts._swept(True)[0], True)
    assert _conv2d_tuned.tuned(x, *sizes) == plan and _conv2d_tuned.version("NVIDIA H200") != "model"
    assert _conv2d_tuned.tuned(x, 17, *sizes[1:]) is None and _conv2d_tuned.version("NVIDIA L4") == "model"
    (tmp_path / "tuned-nvidia-l40.json").write_text('{"1 2": [1]}')
    assert _conv2d_tuned.table("NVIDIA L40") == {} and _conv2d_tuned.unproved("boxes", torch.device("cuda"))

    seen = []
    monkeypatch.setattr(conv2d, "tuned", lambda x, *found: seen.append(found) or plan)
    monkeypatch.setattr(conv2d, "blocks", lambda *args: pytest.fail("the model was asked"))
    image, weight = torch.randn(1, 16, 4, 4), torch.randn(16, 16, 3, 3)
    found = conv2d.forward(image, conv2d.pack(weight), padding=1)
    torch.testing.assert_close(found, torch.nn.functional.conv2d(image, weight, padding=1), rtol=1e-4, atol=1e-4)
    assert seen == [sizes]


def test_plans_made_without_a_clock_run_every_kernel(told, monkeypatch):
    faults, ran = [], []
    monkeypatch.setattr(_gpu_parts, "tell", lambda **event: faults.append(event))

    def breaks():
        raise RuntimeError("out of resource: shared memory\nRequired: 118784")

    names = ["torch", "triton", "cuda"]
    calls = {name: lambda name=name: ran.append(name) for name in names} | {"merged": breaks}
    for _ in range(2):
        found = _gpu_parts.untimed("conv2d 1", calls)
        assert sorted(found, key=found.get) == names[::-1]
    assert ran == names[1:] * 2  # torch's own functions need no compiler
    assert faults == [{"candidate": "merged conv2d 1", "fault": "RuntimeError: out of resource: shared memory"}]


def test_a_reference_that_fails_is_a_row_with_a_reason(told, monkeypatch):
    def first_call(target, network, *rest):
        if network == "broken":
            raise RuntimeError("no memory\nat all")
        return {"network": network}, None, []

    monkeypatch.setattr(_gpu_parts, "opened", lambda network, device: network)
    monkeypatch.setattr(_gpu_parts._peers, "subject", lambda net, batch: open(os.devnull))
    monkeypatch.setattr(_gpu_parts.bench, "first_call", first_call)
    monkeypatch.setattr(_gpu_parts, "row_of", lambda target, subject, row, reference, rounds: {"row": row})
    monkeypatch.setattr(_gpu_parts, "flops", lambda net, device: 7)
    place = _gpu_places.Place
    monkeypatch.setattr(_gpu_parts, "QUICK", {"networks": [place("broken", 1, ("a",)), place("fine", 2, ("b", "c"))]})
    _gpu_parts.places("networks", TRIAL, {"done": ["fine, batch 2, c"], "facts": {}})
    assert [row.get("reason") for row in told["rows"]] == ["RuntimeError: no memory", None]
    assert told["facts"] == {"flops": {"broken": 7, "fine": 7}} and told["cut"] == []


PLANTED = f"""
import json, os, signal, sys, time
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from _gpu_process import tell
rows, done = ["good", "hangs", "dies", "late", "last"], json.load(sys.stdin)["done"]
tell(facts={{"slug": "planted", "settings": {{"device": "cpu"}}}})
for place, row in enumerate(rows):
    name = f"net, batch 1, {{row}}"
    if name in done:
        continue
    tell(begin=name, limit=0.7 if row == "hangs" else 30, left=[f"net, batch 1, {{r}}" for r in rows[place:]])
    if row == "hangs":
        time.sleep(60)
    if row == "dies":
        print("RuntimeError: an illegal memory access", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if row == "late" and sys.argv[1] == "training":
        time.sleep(60)
    numbers = {{"median_s": 0.001, "ratio": 2.0, "images_per_s": 1000.0, "error": 1e-4}}
    tell(row={{"id": name, "network": "net", "batch": 1, "row": row, **numbers}})
"""


@pytest.mark.parametrize("full", [False, True])
def test_what_is_left_of_parts_that_hang_and_die_and_of_a_full_disk(tmp_path, full):
    program = tmp_path / "planted.py"
    program.write_text(PLANTED)
    words = ["--device=cpu", "--parts=networks,training", "--budget=training=2", f"--outdir={tmp_path}/out"]
    words += [f"--workdir={tmp_path}/out/work", "--seconds=18"]
    code = f"import gpu_report, pathlib; gpu_report.PROGRAM = pathlib.Path({str(program)!r}); gpu_report.GRACE = 1; "
    code += f"raise SystemExit(gpu_report.main({words}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)) if full else None,
    )
    shown = done.stdout
    assert done.returncode == 1 and len(shown.rpartition("training: ")[2]) <= 10_000, done.stderr[-2000:]
    assert all(f"1 {row} " in shown for row in ("good", "late", "last"))
    assert "networks, net, batch 1, hangs: no result in its time" in shown
    assert "networks, net, batch 1, dies: its process ended with -11: RuntimeError: an illegal memory access" in shown
    assert "networks   NOT OK" in shown and "3 rows, 0 with a reason, 2 lost" in shown
    assert "training, out of time: net, batch 1, late" in shown and "training, out of time: net, batch 1, last" in shown
    files = sorted(path.name for path in (tmp_path / "out").glob("*.*")) if (tmp_path / "out").exists() else []
    if full:
        assert "gpu-report.md is not written: File too large" in shown and "gpu-report.md" not in files
        return
    assert files == ["gpu-report.md", "gpu-report.tar.gz"]
    with tarfile.open(tmp_path / "out/gpu-report.tar.gz") as archive:
        assert {"results/networks-planted.json", "parts/training.json", "networks.log"} <= {*archive.getnames()}
        (document,) = [json.load(archive.extractfile(n)) for n in archive.getnames() if n.startswith("results/net")]
    assert [row["row"] for row in document["rows"]] == ["good", "late", "last"]
    assert "illegal memory access" in (tmp_path / "out/work/networks.log").read_text()


def test_the_places_hold_every_peer_and_batch():
    places = _gpu_places.PLACES["networks"]
    assert (*places[0][:2], places[0].rows) == (
        _targets.DDPMPP,
        64,
        ("reference", "torch-half-fp16", "accelerate-fp16"),
    )
    assert (_gpu_places.NCSNPP, _gpu_places.ADM) == (_targets.NCSNPP, _targets.ADM)
    wanted = {*_gpu_places.PEERS, *_gpu_places.OURS, *_gpu_places.FUSED, *_gpu_places.COMPILED}
    for name, batches in _gpu_places.BATCHES.items():
        for batch in batches:
            assert {row for p in places if p[:2] == (name, batch) for row in p.rows} == wanted
    for target in _gpu_places.PLACES.values():
        assert all(set(place.rows) <= set(ROWS) for place in target)
    assert {row for _, _, row in _gpu_places.warm_jobs(False)} <= set(ROWS)
    assert {layer.op for layer in _gpu_ops.layers(quick=False)} == set(_gpu_ops.backend.ops())


def test_the_usual_parts_fit_into_a_call(tmp_path):
    call = call_of(tmp_path)
    chosen = [name for name in call.args.chosen if name != "warm"]  # beside the build
    assert set(gpu_report.PARTS) - set(call.args.chosen) == {*gpu_report.ALONE} and chosen[-1] == "sanitizer"
    assert sum(gpu_report.BUDGETS[name] for name in chosen) < call.args.seconds - _gpu_call.LAST < 600
    args = gpu_report.arguments(["--budget=networks=7.5", "--parts=ops, networks"])
    assert args.budgets["networks"] == 7.5 and args.chosen == ["ops", "networks"]
    assert gpu_report.arguments(["--sweep"]).chosen == ["build", "sweep", "races", "counters"]
    for wrong in ("--parts=nope", "--budget=nope=1", "--budget=ops=x"):
        with pytest.raises(SystemExit):
            gpu_report.arguments([wrong])


def test_finished_parts_are_not_run_again_and_one_that_raises_is_not_the_last(tmp_path, monkeypatch, capsys):
    ran = []

    def part(name, complete):
        def run_part(call, seconds):
            ran.append(name)
            if name == "tests":
                raise KeyError("a fault of the script")
            return {"complete": complete, "ok": True, "summary": "done"}, "its log"

        return run_part

    parts = {"build": part("build", True), "tests": part("tests", True), "sanitizer": part("sanitizer", False)}
    monkeypatch.setattr(gpu_report, "PARTS", parts)
    words = ["--device=cpu", f"--outdir={tmp_path}", f"--workdir={tmp_path}/work", "--parts=build,tests,sanitizer"]
    assert gpu_report.main(words) == 1 and gpu_report.main([*words, "--resume"]) == 1
    assert ran == ["build", "tests", "sanitizer", "sanitizer"]
    assert "tests      NOT OK" in capsys.readouterr().out and (tmp_path / "work/build.log").read_text() == "its log"
    assert not list(tmp_path.rglob(".*"))


def test_a_command_ends_at_its_time_and_does_not_wait_for_its_children():
    found = run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 2)
    assert found["status"] is None and found["output"] == "begun\n" and found["seconds"] < 20
    orphan = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(sys.stdin.read()); raise SystemExit(3)"
    found = run([sys.executable, "-c", orphan], 20, text="hello")
    assert found["status"] == 3 and found["output"] == "hello\n" and found["seconds"] < 15


def build(tmp_path, monkeypatch, works, present="it was built from other sources"):
    """The part's result where compiling works as `works` says, and the settings of every attempt."""
    state, attempts = [present], []

    def fake(command, seconds, env=None, *rest):
        if "build_ext" in command:
            attempts.append({key: value for key, value in env.items() if key.startswith("EDM_FAST_CUDA")})
            state[0] = works.get(env["EDM_FAST_CUDA"], state[0])
            return {"status": 0 if env["EDM_FAST_CUDA"] in works else 1, "output": "error: no nvcc\n", "seconds": 1}
        text = "12 0" if "capability" in command[-1] else state[0]
        return {"status": 0, "output": f"{text}\n", "seconds": 1}

    monkeypatch.setattr(gpu_report, "run", fake)
    monkeypatch.delenv("EDM_FAST_CUDA_ARCH", raising=False)
    part, _ = gpu_report.build(call_of(tmp_path, "--device=cuda"), 60)
    return part, attempts


def test_a_build_without_cuda_is_better_than_none(tmp_path, monkeypatch):
    with_cuda, without = {"EDM_FAST_CUDA": "1", "EDM_FAST_CUDA_ARCH": "120a"}, {"EDM_FAST_CUDA": "0"}
    part, attempts = build(tmp_path, monkeypatch, {"1": "cuda", "0": "cpu"})
    assert part["ok"] and part["complete"] and attempts == [with_cuda]
    part, attempts = build(tmp_path, monkeypatch, {"0": "cpu"})
    assert not part["ok"] and part["complete"] and attempts == [with_cuda, without]
    assert "compiled part: cpu; EDM_FAST_CUDA=1: error: no nvcc" in part["summary"]
    part, attempts = build(tmp_path, monkeypatch, {})
    assert not part["ok"] and part["complete"] and len(attempts) == 2 and "from other sources" in part["summary"]
    assert build(tmp_path, monkeypatch, {}, present="cuda")[1] == []


PYTEST = """
[gw0] [  3%] PASSED tests/ops/test_a.py::test_x[odd-torch.float32]
[gw1] [  6%] FAILED tests/ops/test_a.py::test_y[a b]
[gw1] [  9%] SKIPPED tests/ops/test_a.py::test_z
tests/plan/test_b.py::test_plain PASSED                                  [ 50%]
tests/plan/test_b.py::test_skips SKIPPED (no CUDA device)                [100%]
tests/plan/test_b.py::test_breaks ERROR
FAILED tests/ops/test_a.py::test_y[a b] - AssertionError: 1e-2
"""


def test_outcomes_of_tests_count_before_the_last_is_over(tmp_path, monkeypatch):
    found = _gpu_pages.outcomes(PYTEST)
    assert found["tests/ops/test_a.py::test_y[a b]"] == ("FAILED", "AssertionError: 1e-2")
    words = [outcome for outcome, _ in found.values()]
    assert [words.count(word) for word in _gpu_pages.OUTCOMES] == [2, 1, 1, 2]
    monkeypatch.setattr(gpu_report, "run", lambda *args: {"status": None, "output": PYTEST, "seconds": 1})
    part, log = gpu_report.tests(call_of(tmp_path), 60)
    assert part["summary"] == "2 passed, 1 failed, 1 error, 2 skipped" and not part["ok"] and not part["complete"]
    assert part["failures"][0].endswith("test_y[a b] AssertionError: 1e-2") and log == PYTEST
    assert all((ROOT / path).exists() for path in gpu_report.GPU_TESTS)


def test_an_archive_that_would_be_too_large_goes_without_its_largest_member(tmp_path, monkeypatch):
    (tmp_path / "networks.log").write_bytes(os.urandom(100_000))
    (tmp_path / "tests.log").write_text("small")
    monkeypatch.setattr(_gpu_pages, "ARCHIVE", 20_000)
    with tarfile.open(fileobj=io.BytesIO(_gpu_pages.archive({"build": {"ok": True}}, tmp_path))) as archive:
        assert archive.getnames() == ["parts/build.json", "tests.log"]


def test_the_tables_on_the_terminal_are_short():
    numbers = {"median_s": 1.0, "ratio": 1.0, "images_per_s": 1.0, "error": 0.1}
    rows = [{"id": "x", "network": f"net{i}", "batch": i, "row": "accelerate-fp16", **numbers} for i in range(300)]
    part = {"rows": rows, "ok": True, "summary": "x" * 5000, "cut": ["y" * 200] * 100}
    parts = dict.fromkeys(["networks", "training", "sampling"], part)
    op = {**numbers, "op": "conv2d", "layer": "a layer", "kind": "forward", "backend": "triton"}
    text = _gpu_pages.terminal(
        {**parts, "ops": {"rows": [op] * 99}, "sweep": {"rows": [{"id": "s"}] * 99}}, ["full"] * 9
    )
    assert len(text) <= 10_000 and "net0" in text and "lines more in the page" in text and text.endswith("full")
    assert all(f"\n{title}\n" in text for title in ("ops, us", "sweep, TFLOP/s", "not measured", "networks"))


def races(tmp_path, monkeypatch, status, *events, parts=None):
    """The part and where it looked, as its process ends so after it has told these events."""
    ran = []

    def run(command, seconds, environment, text, heard):
        ran.append((command, environment))
        for event in events:
            heard(event)
        return {"status": status, "output": "a race"}

    monkeypatch.setattr(gpu_report, "run", run)
    call = call_of(tmp_path, "--device=cuda")
    call.parts |= parts or {}
    return gpu_report.races(call, 60)[0], *ran[0]


def test_races_are_looked_for_in_code_of_their_own(tmp_path, monkeypatch):
    found = [races(tmp_path, monkeypatch, status)[0] for status in (0, 1, None)]
    assert [part["summary"] for part in found] == ["clean", "a race", "out of time"]
    assert [part["ok"] for part in found] == [True, False, False]
    _, command, environment = races(tmp_path, monkeypatch, 0)
    assert "races" in command and environment["TRITON_INSTRUMENTATION_MODE"] == "consan"
    assert environment["TRITON_CACHE_DIR"] != call_of(tmp_path).environment()["TRITON_CACHE_DIR"]


def test_where_the_kernel_in_gluon_does_not_run_there_is_no_fault_and_nothing_is_clean(told, tmp_path, monkeypatch):
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import _conv2d_gluon

    monkeypatch.setattr(_conv2d_gluon, "SLOTS", _conv2d_gluon.SLOTS)
    _gpu_parts.races(TRIAL, {"done": [], "facts": {}})
    part, *_ = races(tmp_path, monkeypatch, 0, *told["events"])
    assert part["ok"] and part["complete"] and part["summary"].startswith("not run: ")
    assert part["facts"] == {"chip": "cpu"}


def test_the_layers_looked_at_for_races_are_some_that_the_kernel_takes():
    if (reason := _triton.reason(torch.ones(1))) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import _conv2d_gluon

    for n, c, size, outputs in _gpu_parts.RACED:
        assert _conv2d_gluon.shape_reason((n, c, size, size), (outputs, c, 3, 3), 1) is None


@pytest.mark.parametrize("same_call", [True, False])
def test_after_a_race_plans_do_without_the_kernel(tmp_path, monkeypatch, same_call):
    """Also when the sweep goes on later."""
    root, known = tmp_path / "tree", {"64 128 64 9 1 2": [64, 64, 64, 4, 4, 1], "boxes": [1], "winograd-early": [1]}
    file = root / "kernels/tuned-nvidia-h200.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(known))
    monkeypatch.setattr(gpu_report, "ROOT", root)
    facts = {"chip": "nvidia-h200"}
    sweep = {"complete": True, "rows": [], "summary": "", "facts": {**facts, "tuned": known}}
    parts = {"sweep": sweep} if same_call else {}
    for status in (0, None):
        races(tmp_path, monkeypatch, status, {"facts": facts}, parts=parts)
        assert json.loads(file.read_text()) == known
    part, *_ = races(tmp_path, monkeypatch, 1, {"facts": facts}, parts=parts)
    assert json.loads(file.read_text()) == {**known, "boxes": [0]}
    call = call_of(tmp_path, "--device=cuda")
    call.parts["races"] = part
    monkeypatch.setattr(gpu_report, "side_by_side", lambda *args: ({"summary": ""}, ""))
    monkeypatch.setattr(gpu_report, "measured", lambda name: lambda *args: (sweep, ""))
    gpu_report.sweep(call, 60)
    assert json.loads(file.read_text()) == {**known, "boxes": [0]}


@needs_native
@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path, capsys):
    words = ["--device=cpu", "--quick", f"--outdir={tmp_path}", f"--workdir={tmp_path}/work"]
    assert gpu_report.state_of_build(call_of(tmp_path)).endswith(("cpu", "cuda", "from other sources"))
    assert gpu_report.main([*words, "--parts=warm,tests,sanitizer"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 1 plans" in shown and "tests      ok" in shown and "sanitizer  ok" in shown
    start = time.monotonic()
    assert gpu_report.main([*words, "--parts=warm,tests", "--resume"]) == 0 and time.monotonic() - start < 5
