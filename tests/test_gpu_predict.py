"""Predictions for GPUs: they follow from what they are said to, and the file of them is that of the table as it is."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _gpu_model as model  # noqa: E402
import _gpu_pages as pages  # noqa: E402
import _gpu_sweep  # noqa: E402
import _gpu_training  # noqa: E402
import gpu_predict  # noqa: E402
from _gpu_model import CHIPS, Convolution  # noqa: E402

H200, A100 = CHIPS["h200"], CHIPS["a100"]
LAYER = Convolution(64, 256, 32, 32, 256, 3, added=1)


@pytest.fixture(scope="module")
def nodes():
    return gpu_predict.graph_of("edm-cifar10-32x32-cond-vp", 1)


def test_products_of_a_network(nodes):
    """2 x 21.2 billion multiply-adds of an image, after the rewrites of plans."""
    convolutions = [c for node in nodes if (c := gpu_predict.convolution(node))]
    assert sum(c.flops() for c in convolutions) == pytest.approx(42e9, rel=0.02)


def test_edm2():
    """Its 2 x 100 billion multiply-adds; factors and SiLU in its convolutions, and no pass that clips."""
    nodes = gpu_predict.graph_of("edm2-img64-s", 1)
    convolutions = [c for node in nodes if (c := gpu_predict.convolution(node))]
    assert sum(c.flops() for c in convolutions) == pytest.approx(2 * 100e9, rel=0.03)
    _, kinds, _ = gpu_predict.network(H200, nodes)
    assert {"norm", "factor and SiLU and convolution 3x3", "convolution 1x1", "attention"} < kinds.keys()
    assert not any(getattr(node.function, "__name__", "") == "clip" for node in nodes if hasattr(node, "function"))
    first = [gpu_predict.before_of(H200, node) for node in nodes]
    assert all(min(f.rest, f.seconds) > 0 for f in first if f.name) and any(f.name for f in first)


@pytest.mark.parametrize(
    "options, line",
    [
        (["--network=edm2-img64"], "is no preset (near names: edm2-img64-"),
        (["--batch=0"], "--batch=0; expected 1 or more"),
    ],
)
def test_refusals(options, line, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_predict.py", *options])
    with pytest.raises(SystemExit) as refused:
        gpu_predict.main()
    assert refused.value.code == 2 and line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_nothing_is_faster_than_its_products_and_its_bytes(chip):
    for c in (LAYER, LAYER._replace(n=1, h=8, w=8), LAYER._replace(c=192, outputs=384, h=64, w=64)):
        floor = c.flops() / (2 * chip.rate * chip.processors * chip.rhythm())
        assert model.direct(chip, c) > floor and model.library(chip, c) > floor
        assert model.library(chip, c, passes=True) > model.library(chip, c)
        parts = model.winograd_parts(chip, c, norm=True)
        assert parts["products"] > floor / 4 and min(parts.values()) > 0
        assert sum(parts.values()) > 2 * c.bytes_out() / chip.cache


@pytest.mark.parametrize("key, names", [("slots", ("to tiles", "back")), ("bound", ("products",))])
def test_instructions_of_the_table_count(key, names, monkeypatch):
    before, direct = model.winograd_parts(A100, LAYER, norm=True), model.direct(A100, LAYER)
    table = json.loads(json.dumps(model.rows()))
    for chips in table["conv2d"].values():
        row = chips.get("sm_80", {})
        row["slots"] = row.get("slots", 0) * (3 if key == "slots" else 1)
        if key == "bound" and "bound" in row.get("loop", {}):
            row["loop"]["bound"] /= 3
    model.loops.cache_clear()
    monkeypatch.setattr(model, "rows", lambda: table)
    after = model.winograd_parts(A100, LAYER, norm=True)
    assert all(after[name] > 1.3 * before[name] for name in names)
    assert (model.direct(A100, LAYER) > 2 * direct) == (key == "bound")
    monkeypatch.undo()
    model.loops.cache_clear()


def test_the_file_is_that_of_the_table(nodes):
    """`python benchmarks/gpu_predict.py --write` writes it again."""
    known, step_of = json.loads(gpu_predict.RESULTS.read_text()), gpu_predict.traced(*gpu_predict.TRAINED)
    assert known.keys() == CHIPS.keys()
    for name, chip in CHIPS.items():
        want = gpu_predict.op_seconds(chip)
        by_way, by_kind, _ = gpu_predict.network(chip, nodes)
        want["edm-cifar10-32x32-cond-vp, batch 1"] = by_way["best"]
        want["edm-cifar10-32x32-cond-vp, batch 1, sampling"] = gpu_predict.sampled(by_way["best"], 35)
        found = _gpu_training.step(chip, step_of[0].nodes, step_of[1])
        want["edm-cifar10-32x32-cond-vp, batch 128, training"] = found["step"]
        assert {key: known[name][key] for key in want} == pytest.approx(want)
        assert sum(by_kind.values()) == pytest.approx(min(by_way.values()))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_a_training_step_has_three_times_the_products_and_a_pass_for_each_term(chip):
    graph, parameters = gpu_predict.traced("edm-cifar10-32x32-cond-vp", 32)
    both = [_gpu_training.step(chip, graph.nodes, parameters, one_pass) for one_pass in (True, False)]
    products = 3 * 32 * 42e9 / chip.convolutions
    assert all(products < found["convolutions"] < 2 * products for found in both)
    assert both[0]["convolutions"] < both[1]["convolutions"] and both[0]["Python"] < both[1]["Python"]
    assert both[0]["step"] == max(sum(both[0][key] for key in ("convolutions", "others", "Adam")), both[0]["Python"])
    assert parameters == pytest.approx(55.7e6, rel=0.01)


def test_rows_of_the_sweep():
    swept = _gpu_sweep.layers_of(gpu_predict.traced(*gpu_predict.SWEPT[0])[0].nodes)
    (layer,) = [found for found in swept if found[:6] == (64, 256, 32, 32, 256, 3)]
    rates = gpu_predict.sweep(H200, [layer])
    by_way = {key.removeprefix(f"sweep, {layer.name()}, "): rate for key, rate in rates.items()}
    assert by_way.keys() == {"cudnn", "tail", "cudnn+passes", "fused", "boxes", "winograd"}
    assert by_way["cudnn"] > by_way["tail"] > by_way["cudnn+passes"] > 0
    known = json.loads(gpu_predict.RESULTS.read_text())["h200"]
    assert {key: known[key] for key in rates} == pytest.approx(rates)
    row = {"id": layer.name(), "tflops": {"cudnn": 600, "64x64, 4 warps": 700, "128x64, 4 warps": 710}, "share": 0.9}
    parts = {"sweep": {"rows": [row], "facts": {"slug": "cuda-nvidia-h200"}}}
    (line,) = pages.sweep_lines(parts, 6)
    assert f"cudnn 600 [{rates[f'sweep, {layer.name()}, cudnn']:.0f}]" in line
    assert f"128x64, 4 warps 710 [{rates[f'sweep, {layer.name()}, fused']:.0f}]; 64x64, 4 warps 700;" in line


@pytest.mark.parametrize(
    "target, row, batch", [("training", "fused-autocast-bf16", 128), ("sampling", "accelerate-fp16", 64)]
)
def test_the_report_prints_steps_and_samplers_beside_what_is_measured(target, row, batch):
    found = {"network": "edm-cifar10-32x32-cond-vp", "batch": batch, "row": row, "median_s": 0.04, "ratio": 2.0}
    parts = {target: {"rows": [{**found, "images_per_s": 1, "error": 0}], "facts": {"slug": "cuda-nvidia-h200"}}}
    known = json.loads(gpu_predict.RESULTS.read_text())["h200"]
    want = known[f"edm-cifar10-32x32-cond-vp, batch {batch}, {target}"]
    assert f"{want * 1e3:.3f} predicted" in next(iter(pages.network_lines(parts, target)))
    parts[target]["rows"][0]["row"] = "reference"
    assert "predicted" not in next(iter(pages.network_lines(parts, target)))


def test_the_report_prints_them_beside_what_is_measured():
    row = {"network": "edm-cifar10-32x32-cond-vp", "batch": 64, "row": "accelerate-fp16", "median_s": 0.006}
    row |= {"ratio": 5.0, "images_per_s": 1e4, "error": 1e-3}
    op = {"op": "conv2d", "layer": "64x256x32x32 to 256, 3x3", "kind": "forward", "backend": "triton"}
    op |= {"median_s": 1.5e-4, "ratio": 2.0}
    parts = {"networks": {"rows": [row], "facts": {"slug": "cuda-nvidia-h200"}}, "ops": {"rows": [op]}}
    (line,), (of_op,) = pages.network_lines(parts, "networks"), pages.op_lines(parts)
    known = json.loads(gpu_predict.RESULTS.read_text())["h200"]
    assert f"{known['edm-cifar10-32x32-cond-vp, batch 64'] * 1e3:.3f} predicted" in line
    assert f"{known['conv2d, 64x256x32x32 to 256, 3x3'] * 1e6:.3f} predicted" in of_op
    parts["networks"]["facts"]["slug"] = "cuda-another"
    assert "predicted" not in next(iter(pages.network_lines(parts, "networks")))
