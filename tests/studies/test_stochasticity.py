"""The study of fresh noise, in miniature."""

from edm_fast.studies import stochasticity
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed, run
from helpers.tiny_networks import tiny_checkpoint


def test_stochasticity(tmp_path, monkeypatch, data):
    monkeypatch.setattr(stochasticity, "MOVED", {"S_churn": (0.0, 1.0), "S_noise": (1.003, 3.0)})
    monkeypatch.setattr(stochasticity, "PRESETS", {"a & b": (1.0, 0.05, 50.0, 1.003)})
    options = (f"--data={data}", f"--detector={tmp_path / 'd.pt'}", "--seeds=0-9", "--steps=4")
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "stochasticity", *options)
    found = [tuple(row[name] for name in stochasticity.BASE) for row in rows]
    # a setting of two charts and the middle of both are measured once
    assert found == [(0, 0.05, 50, 1.003), (1, 0.05, 50, 1.003), (20, 0.05, 50, 1.003), (20, 0.05, 50, 3)]
    assert all("reason" not in row for row in rows) and len({row["kid"] for row in rows}) == 4
    text = (out / "stochasticity.html").read_text()
    assert "a &amp; b" in text and "no fresh noise" in text
    check_in_a_browser(out / "stochasticity.html", tmp_path)


def test_too_few_images(tmp_path):
    result = run("stochasticity", f"--network={tiny_checkpoint(tmp_path)}", "--seeds=0-3", f"--outdir={tmp_path}")
    assert result.exit_code == 2 and "at least 8" in result.stderr
