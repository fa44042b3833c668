"""Predictions for GPUs: they follow from what they are said to, and the file of them is that of the table as it is."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _gpu_model as model  # noqa: E402
import _gpu_pages as pages  # noqa: E402
import gpu_predict  # noqa: E402
from _gpu_model import CHIPS, Convolution  # noqa: E402

H200, A100 = CHIPS["h200"], CHIPS["a100"]
LAYER = Convolution(64, 256, 32, 32, 256, 3, added=1)


@pytest.fixture(scope="module")
def nodes():
    return gpu_predict.graph_of("edm-cifar10-32x32-cond-vp", 1)


def test_products_of_a_network(nodes):
    """2 x 21.2 billion multiply-adds of an image, after the rewrites of plans."""
    convolutions = [found[0] for node in nodes if (found := gpu_predict.convolution(node))]
    assert sum(c.flops() for c in convolutions) == pytest.approx(42e9, rel=0.02)


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
    known = json.loads(gpu_predict.RESULTS.read_text())
    assert known.keys() == CHIPS.keys()
    for name, chip in CHIPS.items():
        want = gpu_predict.op_seconds(chip)
        by_way, by_kind, _ = gpu_predict.network(chip, nodes)
        want["edm-cifar10-32x32-cond-vp, batch 1"] = by_way["best"]
        assert {key: known[name][key] for key in want} == pytest.approx(want)
        assert sum(by_kind.values()) == pytest.approx(min(by_way.values()))


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
