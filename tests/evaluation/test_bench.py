"""bench: turns, ratios, rows with and without numbers, continued runs, memory."""

import dataclasses
import json
import sys
import time

import pytest
import torch

from edm_fast import backend, checkpoint, networks, timing
from edm_fast.errors import UserError
from edm_fast.evaluation import _memory, _networks, _peers, bench
from edm_fast.evaluation._rows import ROWS
from edm_fast.evaluation._targets import TARGETS, default_batches
from helpers.tiny_networks import UNET, tiny_checkpoint


def silent(text):
    pass


def measured(target, path, batch, rows, **kwargs):
    entries = bench.measure(target, path, batch, rows, 1, silent, **kwargs)
    return {entry["row"]: entry for entry in entries}


def test_one_evaluation(tmp_path, monkeypatch):
    def accelerated(net, precision, **limits):
        if precision == "bf16":
            raise UserError("this CPU has no bf16")
        return lambda x, sigma, labels: net(x, sigma, labels) * 1.001

    monkeypatch.setattr("edm_fast.evaluation._rows.accelerated", accelerated)
    path = tiny_checkpoint(tmp_path, label_dim=4)
    entries = measured("networks", path, 2, ["fused", "accelerate-fp32", "accelerate-bf16", "torch-bf16"])
    assert list(entries) == ["reference", "fused", "accelerate-fp32", "accelerate-bf16", "torch-bf16"]
    assert entries["reference"]["ratio"] == 1 and entries["reference"]["error"] == 0
    assert entries["fused"]["error"] < 1e-6
    assert entries["accelerate-fp32"]["error"] == pytest.approx(1e-3, rel=1e-3)
    assert entries["accelerate-bf16"]["reason"] == "this CPU has no bf16" and "ratio" not in entries["accelerate-bf16"]
    assert 1e-4 < entries["torch-bf16"]["error"] < 5e-2 and entries["torch-bf16"]["memory_format"] == "channels_last"
    for entry in entries.values():
        assert entry["network"] == path and entry["batch"] == 2 and entry["date"]
        if "ratio" in entry:
            assert entry["images_per_s"] == pytest.approx(2 / entry["median_s"])


def test_bfloat16_leaves_the_network_and_its_frequencies_alone(tmp_path):
    changes = {"embedding_type": "fourier", "channel_mult_noise": 2}
    net = _networks.open_network(tiny_checkpoint(tmp_path, **changes))
    with _peers.subject(net, 1) as subject:
        half = ROWS["torch-bf16"].build(subject)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert torch.equal(half.model.model.map_noise.freqs, net.model.map_noise.freqs)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert half.img_channels == net.img_channels


PEERS = {  # packages in the order they are imported, and the error that is allowed
    "onnxruntime": (["onnxruntime", "onnx"], 1e-5),
    "openvino": (["openvino", "onnx"], 1e-5),
    "openvino-bf16": (["openvino", "onnx"], 5e-2),
    "ncnn": (["ncnn", "pnnx"], 1e-5),
    "ncnn-split": (["ncnn", "pnnx"], 1e-5),
    "mnn": (["MNN", "onnx"], 1e-5),
    "opencv": (["cv2", "onnx"], 1e-5),
}


def test_every_peer_is_in_the_table():
    assert set(PEERS) == {name for name, row in ROWS.items() if row.device == "cpu" and not row.samples}


@pytest.mark.parametrize("row", PEERS)
def test_peers_that_are_not_installed(tmp_path, monkeypatch, row):
    package = PEERS[row][0][0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # or there is nothing to split
    with _peers.subject(_networks.open_network(tiny_checkpoint(tmp_path)), 2) as subject:
        with pytest.raises(UserError, match=f"^{package} is not installed$"):
            ROWS[row].build(subject)


@pytest.mark.parametrize("row", PEERS)
@pytest.mark.parametrize("label_dim, batch", [(0, 2), (3, 1), (3, 3)])
def test_peers_that_are_installed_compute_the_same(tmp_path, monkeypatch, row, label_dim, batch):
    packages, most = PEERS[row]
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    entry = measured("networks", tiny_checkpoint(tmp_path, label_dim=label_dim), batch, [row])[row]
    if row == "ncnn-split" and batch == 1:
        assert entry["reason"] == "one image, or one thread, is nothing to split"
    else:
        assert entry["error"] < most and entry["ratio"] > 0


def test_a_peer_that_breaks_is_a_reason(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    entries = measured("networks", tiny_checkpoint(tmp_path), 1, ["torch.compile"])
    assert entries["torch.compile"]["reason"] == "RuntimeError: no compiler" and "ratio" in entries["reference"]


def test_training_compares_gradients(tmp_path, monkeypatch):
    path = tiny_checkpoint(tmp_path, label_dim=2)
    assert 0 < measured("training", path, 2, ["fused"])["fused"]["error"] < 1e-5
    op = backend.ops()["attention"]
    wrong = dataclasses.replace(op.implementations["cpu"], forward=lambda args: op.reference(args) * 1.1)
    monkeypatch.setitem(op.implementations, "cpu", wrong)
    assert measured("training", path, 2, ["fused"])["fused"]["error"] > 1e-3


def test_networks_of_edm2(tmp_path):
    """By their own loss, whose log-variance is trained, too."""
    unet = {name: value for name, value in UNET.items() if name != "model_type"}
    net = networks.build("Precond", {**unet, "label_dim": 2, "channels_per_head": 4}).eval().requires_grad_(False)
    _networks.randomise(net)
    checkpoint.save(net, path := str(tmp_path / "edm2.safetensors"))
    entries = measured("networks", path, 2, ["fused", "accelerate-fp32"])
    assert 0 < max(entries[row]["error"] for row in ("fused", "accelerate-fp32")) < 1e-5
    assert measured("training", path, 2, ["fused"])["fused"]["error"] < 1e-5
    with _peers.subject(_networks.open_network(path), 2) as subject:
        gradients = TARGETS["training"].prepare(ROWS["reference"], subject)()
    assert len(gradients) == len([*net.parameters()]) and all(gradient.any() for gradient in gradients)
    assert default_batches("networks", "edm2-img64-s") == (1, 2, 8)


def test_training_moves_the_weights_of_a_copy(tmp_path):
    net = _networks.open_network(tiny_checkpoint(tmp_path))
    before = [parameter.clone() for parameter in net.parameters()]
    with _peers.subject(net, 2) as subject:
        step = TARGETS["training"].prepare(ROWS["reference"], subject)
        first, second = [gradient.clone() for gradient in step()], step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert 0 < _networks.relative_error(second, first) < 1  # the same noise, other weights


def test_sampling_compares_images(tmp_path):
    entries = measured("sampling", tiny_checkpoint(tmp_path, img_channels=1), 3, ["fused", "torch-bf16"])
    assert entries["fused"]["levels"] < 1e-2 < entries["torch-bf16"]["levels"] < 20


def test_processes_compare_files(tmp_path, monkeypatch):
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path / "cache"))
    path = tiny_checkpoint(tmp_path, img_channels=1)
    entries = measured("processes", path, 2, ["fused", "tuned"])
    assert entries["reference"]["median_s"] > 0.1 and entries["reference"]["levels"] == 0
    assert "no way to run edm-fast generate" in entries["fused"]["reason"]
    assert "tuned for" in entries["tuned"]["reason"]  # another network


def test_one_thread_is_timed_by_the_cpu(monkeypatch):
    """A call that waits for others costs nothing then; processes are no threads of this one."""
    calls = {"reference": lambda: time.sleep(0.02)}
    for threads, target, slept in ((1, "networks", False), (2, "networks", True), (1, "processes", True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        entries = {"reference": {}}
        clock = timing.process_clock if bench.by_cpu_time(target, "cpu") else None
        bench.add_times(entries, calls, 1, 1, "cpu", clock)
        assert (entries["reference"]["median_s"] > 0.015) == slept


def test_defaults():
    for name, target in TARGETS.items():
        assert set(target.rows) <= set(ROWS) and ("tuned" in target.rows) == (name in ("sampling", "processes"))
        assert target.rows[:2] == ("reference", "accelerate-fp32" if name == "processes" else "fused")
    assert "onnxruntime" not in TARGETS["sampling"].rows and TARGETS["training"].rows == ("reference", "fused")
    assert default_batches("networks", "edm-imagenet-64x64-cond-adm") == (1, 2, 8)
    assert default_batches("networks", "demo") == (1, 8, 32) and default_batches("sampling", "demo") == (64,)


def run(outdir, network, **kwargs):
    path = bench.bench("networks", outdir, silent, networks=[network], rounds=1, **{"batches": [1], **kwargs})
    document = json.loads(path.read_text())
    return {(entry["batch"], entry["row"]): entry for entry in document["rows"]}, path


def test_a_continued_run_measures_what_is_missing(tmp_path, monkeypatch):
    network = tiny_checkpoint(tmp_path)
    first, path = run(tmp_path / "out", network, rows=["fused"])
    jobs, measure = [], bench.measure

    def counted(target, name, batch, rows, *args):
        jobs.append((batch, list(rows)))
        return measure(target, name, batch, rows, *args)

    monkeypatch.setattr(bench, "measure", counted)
    second, again = run(tmp_path / "out", network, rows=["fused", "torch-bf16"], batches=[1, 2], resume=True)
    # the reference was asked for by nobody: it came along, and an earlier one stays
    assert again == path and jobs == [(1, ["torch-bf16"]), (2, ["fused", "torch-bf16"])]
    assert list(second) == [(batch, row) for batch in (1, 2) for row in ("reference", "fused", "torch-bf16")]
    assert all(second[key] == first[key] for key in first)
    assert second[1, "torch-bf16"]["reference_median_s"] != first[1, "reference"]["median_s"]
    run(tmp_path / "out", network, rows=["fused", "torch-bf16"], batches=[1, 2], resume=True)
    assert len(jobs) == 2
    monkeypatch.setattr(_memory, "peak_growth", lambda *args: 100)
    third, _ = run(tmp_path / "out", network, rows=["fused"], batches=[2], resume=True, memory=True, command="again")
    assert list(third) == list(second) and third[1, "fused"] == second[1, "fused"]
    assert {key for key, entry in third.items() if "memory_bytes" in entry} == {(2, "reference"), (2, "fused")}
    assert json.loads(path.read_text())["command"] == "; again" and jobs.pop() == (2, ["fused"])
    run(tmp_path / "out", network, rows=["fused"], batches=[2], resume=True, memory=True)
    assert len(jobs) == 2
    run(tmp_path / "out", network, rows=["fused"])  # without resume: anew
    assert jobs[2:] == [(1, ["fused"])]


def test_rows_without_numbers_are_tried_again(tmp_path, monkeypatch):
    network = tiny_checkpoint(tmp_path)
    monkeypatch.setattr("edm_fast.evaluation._rows.accelerated", lambda net, precision, **limits: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of our own is no reason
        run(tmp_path, network, rows=["accelerate-fp32"])

    def not_yet(net, precision, **limits):
        raise UserError("not yet")

    monkeypatch.setattr("edm_fast.evaluation._rows.accelerated", not_yet)
    first, _ = run(tmp_path, network, rows=["accelerate-fp32"])
    assert first[1, "accelerate-fp32"]["reason"] == "not yet"
    monkeypatch.setattr("edm_fast.evaluation._rows.accelerated", lambda net, precision, **limits: net)
    second, _ = run(tmp_path, network, rows=["accelerate-fp32"], resume=True)
    assert list(second) == list(first) and second[1, "accelerate-fp32"]["ratio"] > 0


def test_other_settings_and_other_files_are_not_continued(tmp_path):
    network = tiny_checkpoint(tmp_path)
    _, path = run(tmp_path, network, rows=["fused"])
    document = json.loads(path.read_text())
    document["settings"]["torch"] = "1.0"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="has torch '1.0'"):
        run(tmp_path, network, resume=True)
    for text in ("", "[]", '{"target": "networks"}', '{"target": "x", "settings": {}, "rows": []}'):
        path.write_text(text)
        with pytest.raises(UserError, match="not a file of edm-fast bench"):
            run(tmp_path, network, resume=True)


def test_unknown_networks_stop_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="nope"):
        bench.bench("networks", tmp_path / "out", silent, networks=["demo", "nope"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own():
    """A larger batch takes more, however much the parent holds."""
    ballast = torch.ones(200_000_000)
    one, many = (_memory.peak_growth("networks", "demo", batch, "reference") for batch in (1, 48))
    assert ballast.numel() and 5e6 < one < many - 40e6 < 600e6
    with pytest.raises(UserError, match="memory of reference: .*nope"):
        _memory.peak_growth("networks", "nope", 1, "reference")


def test_memory_columns(monkeypatch, tmp_path):
    sizes = {"reference": 100, "fused": 50}
    monkeypatch.setattr(_memory, "peak_growth", lambda target, name, batch, row: sizes[row])
    entries = measured("networks", tiny_checkpoint(tmp_path), 1, ["fused"], memory=True)
    assert entries["fused"]["memory_ratio"] == 0.5 and entries["reference"]["memory_bytes"] == 100
