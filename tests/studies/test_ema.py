"""The study of widths of averages, in miniature."""

import re

import pytest
import torch

from edm_fast import checkpoint, networks
from edm_fast.evaluation import accuracy, quality
from edm_fast.sampling import edm2_sampler
from edm_fast.studies import Session, registry
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed, run

NETWORK = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 8, "channel_mult": [1, 2]}


@pytest.fixture
def snapshots(tmp_path):
    """Averages of two widths at three times; weights are not those of a training."""
    folder = tmp_path / "run"
    folder.mkdir()
    for kimg in (1, 2, 4):
        for std in (0.05, 0.1):
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)  # the buffers of a run are the same in all snapshots
                net = networks.build("Precond", {**NETWORK, "num_blocks": 1, "attn_resolutions": []}).eval()
                torch.manual_seed(kimg if std < 0.07 else 10 * kimg)
                for parameter in net.parameters():
                    parameter.copy_(torch.randn(parameter.shape))
            checkpoint.save(net.half(), folder / f"network-snapshot-{kimg:07d}-{std:.3f}.safetensors")
    return folder


def test_ema(tmp_path, monkeypatch, data, snapshots):
    detector = tmp_path / "d.pt"
    options = (f"--snapshots={snapshots}", f"--data={data}", f"--detector={detector}", "--seeds=0-9", "--steps=3")
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "ema", *options, "--stds=0.05,0.08,0.2", "--kimg=2,4")
    assert [(row["kimg"], row["snapshots"], row["std"]) for row in rows] == [
        (kimg, number, std) for kimg, number in ((2, 4), (4, 6)) for std in (0.05, 0.08, 0.2)
    ]
    few, more = rows[:3], rows[3:]
    assert few[0]["off"] < 1e-6 and more[0]["off"] < 1e-6  # tracked
    assert 0 < more[1]["off"] < few[2]["off"] and more[2]["off"] < few[2]["off"] < 1
    assert more[0]["sum"] == pytest.approx(1, abs=1e-6) and all(row["sum"] > 1 for row in (more[1], more[2]))
    assert len({row["frechet"] for row in rows}) == 6
    # a width that was tracked is its snapshot
    net = checkpoint.load(snapshots / "network-snapshot-0000004-0.050.safetensors")
    real = quality.reference(str(data), detector=str(detector), others=10)
    images = accuracy.draw(net, edm2_sampler, range(10), num_steps=3)
    assert real.distance(images) == pytest.approx(more[0]["frechet"], rel=1e-3)
    text = (out / "ema.html").read_text()
    assert "width of the average" in text and "Everything measured" in text and text.count("data:image/png") == 5
    check_in_a_browser(out / "ema.html", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stds=0.3"], r"--stds are \[0.3\]; expected widths above 0 and below 0.289"),
        (["--kimg=5"], "no snapshot of 5 thousand images"),
        (["--snapshots={tmp}"], "no snapshots PREFIX-KIMG-STD.pkl"),
        (["--snapshots={tmp}/none"], "is no folder"),
        ([], "the training images of the run are not known; expected --data=PATH"),
        (["--data=demo"], r"images of demo have shape \(1, 32, 32\), those of the network \(3, 8, 8\)"),
        (["--seeds=0-3"], "--seeds are 4; expected at least 8"),
    ],
)
def test_bad_input_is_one_line(tmp_path, snapshots, options, message):
    options = [option.format(tmp=tmp_path) for option in options]
    result = run("ema", f"--snapshots={snapshots}", f"--outdir={tmp_path / 'out'}", *options)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_the_demo_has_what_its_study_needs():
    """Snapshots inside the package, of which every default width can be made."""
    study = registry()["ema"]
    options = {name: option.default for name, option in study.options.items()}
    (first, *rest) = points = study.points(Session(study, "", range(8), "out", options))
    assert first["snapshots"] >= 4 and len(rest) >= 8
    folder = study.points.__globals__["demo_snapshots"]()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3.1e6
    assert {point["kimg"] for point in points} == {first["kimg"]}
