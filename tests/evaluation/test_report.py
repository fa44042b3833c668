"""The pages, chart and README table made from the results of bench."""

import json
import sys
from pathlib import Path

import pytest

from edm_fast.errors import UserError
from edm_fast.evaluation import _machine, _report

ROOT = Path(__file__).parents[2]
SETTINGS = {"device": "cpu", "cpu": "Some CPU 9", "threads": 2, "isa": "avx2", "torch": "2.13.0", "rounds": 5}


def entry(network, batch, row, ratio, **more):
    times = {"median_s": 0.5 / ratio, "images_per_s": 2 * ratio * batch, "ratio_quartiles": [ratio - 0.1, ratio + 0.2]}
    return {"network": network, "batch": batch, "row": row, "ratio": ratio, "error": 1e-6, **times, **more}


@pytest.fixture
def document():
    rows = [entry("demo", batch, row, ratio) for batch in (1, 8) for row, ratio in (("reference", 1.0), ("fused", 1.5))]
    rows.append(entry("demo", 8, "torch-bf16", 1.875, levels=0.25, memory_ratio=0.75, memory_bytes=3 << 20))
    rows.append({"network": "demo", "batch": 1, "row": "openvino", "reason": "openvino is not installed"})
    return {
        "target": "networks",
        "settings": SETTINGS,
        "command": "edm-fast bench networks",
        "date": "2026-01-02T03:04:05+00:00",
        "rows": rows,
    }


TABLE = """\
Speed of one evaluation relative to eager PyTorch in float32 (reference = 1.00), Some CPU 9, 2 threads, torch 2.13.0, \
2026-01-02:

| network | batch | reference | fused | torch-bf16 |
|---|---|---|---|---|
| demo | 1 | 1.00 | 1.50 | – |
| demo | 8 | 1.00 | 1.50 | 1.88 |"""


def test_readme_table(document):
    assert _report.readme_table([document]) == TABLE
    assert _report.readme_table([]) == _report.NO_RESULTS == _report.readme_table([{**document, "rows": []}])


def test_readme_is_rewritten_between_the_marks(tmp_path, document):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    folder.mkdir()
    readme.write_text(f"before\n{_report.BEGIN}\nold | numbers\n{_report.END}\nafter\n", encoding="utf-8")
    (folder / "networks-x.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "ops-x.json").write_text("{}")  # those of the ops are another kind
    assert _report.update_readme(readme, folder)
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{_report.BEGIN}\n\n{TABLE}\n\n{_report.END}\nafter\n"
    assert not _report.update_readme(readme, folder)
    with pytest.raises(UserError, match="no folder"):
        _report.update_readme(readme, tmp_path / "nowhere")
    readme.write_text("no marks")
    with pytest.raises(UserError, match="no place for the table"):
        _report.update_readme(readme, folder)
    assert readme.read_text() == "no marks"


def test_the_tables_here_are_up_to_date():
    """If not: edm-fast bench --readme=docs/benchmark.md."""
    text = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    assert _report.with_table(text, _report.results(ROOT / "benchmarks/results")) == text


def test_committed_results_have_what_a_claim_needs():
    for found in _report.results(ROOT / "benchmarks/results"):
        assert {"device", "cpu", "isa", "threads", "torch", "tf32"} <= set(found["settings"])
        assert found["date"] and found["command"].startswith("edm-fast bench")
        for row in found["rows"]:
            assert "reason" in row or {"precision", "memory_format", "compile", "batch", "error"} <= set(row)


def test_markdown(document):
    page = _report.markdown(document)
    assert TABLE in page and "- openvino: openvino is not installed" in page
    assert "| demo | 8 | 0.25 |" in page and "| demo | 8 | 0.75 |" in page
    assert "`edm-fast bench networks`" in page and "isa avx2" in page


def test_terminal_table(document):
    lines = _report.table(document)
    assert len(lines) == 7 and lines[0].endswith("MiB")
    assert "1.88" in lines[5] and lines[5].split()[-3:] == ["3", "0.25", "levels"]
    assert lines[6].endswith("cannot run: openvino is not installed")


class Broken:
    def __getattr__(self, name):
        raise RuntimeError("_ARRAY_API")


def test_chart(tmp_path, document, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "networks-x.json").write_text(json.dumps(document), encoding="utf-8")
    written = _report.write_pages(tmp_path / "networks-x.json")
    assert [Path(name).suffix for name in written] == [".json", ".md", ".png"]
    assert (tmp_path / "networks-x.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "networks-x.md").read_text(encoding="utf-8") == _report.markdown(document)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert _report.chart(document, tmp_path / "second.png") == "no chart: matplotlib is not installed"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", Broken())
    assert _report.chart(document, tmp_path / "second.png").endswith("does not load (RuntimeError: _ARRAY_API)")
    assert not (tmp_path / "second.png").exists()


@pytest.mark.parametrize(
    "cpu, name",
    [
        ("AMD EPYC 9R14", "cpu-amd-epyc-9r14-avx2-2-threads"),
        ("Intel(R) Xeon(R) Platinum 8488C", "cpu-intel-xeon-platinum-8488c-avx2-2-threads"),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", "cpu-intel-core-i7-9700k-avx2-2-threads"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "cpu-amd-ryzen-9-7950x-avx2-2-threads"),
    ],
)
def test_file_names(cpu, name):
    assert _machine.slug({**SETTINGS, "cpu": cpu}) == name
    assert _machine.slug({**SETTINGS, "device": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"


def test_a_processor_without_a_number_gets_its_family(monkeypatch):
    found = {"model name": "AMD EPYC", "cpu family": "25", "model": "17"}
    monkeypatch.setattr(_machine, "_cpuinfo", lambda: found)
    assert _machine.cpu_name() == "AMD EPYC (family 25, model 17)"
    found["model name"] = "AMD EPYC 9R14"
    assert _machine.cpu_name() == "AMD EPYC 9R14"
    monkeypatch.setattr(_machine, "_cpuinfo", dict)
    assert isinstance(_machine.cpu_name(), str)
