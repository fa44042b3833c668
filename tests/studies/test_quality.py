"""The study of quality, in miniature."""

import csv
import re

import pytest
import torch

from edm_fast.evaluation import quality
from edm_fast.sampling.images import read_png
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed, run
from helpers.tiny_networks import tiny_checkpoint


def test_quality(tmp_path, monkeypatch, data):
    options = (f"--data={data}", f"--detector={tmp_path / 'd.pt'}", "--seeds=0-9", "--solvers=heun", "--nfe=3,4,5")
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "quality", *options)
    real, few, refused, more = rows
    assert (real["images"], few["nfe"], refused["nfe"], more["nfe"]) == ("other real images", 3, 4, 5)
    assert "expected" in refused["reason"] and "frechet" not in refused
    assert real["metric"] == few["metric"] == "FID" and real["frechet"] < few["frechet"] and real["kid"] < few["kid"]
    assert real["precision"] > few["precision"] and 0 < real["near"] < 1 and few["near"] == 0
    assert {path.name for path in (out / "quality-pictures").iterdir()} == {
        *("other-real-images-0.png", "heun-3.png", "heun-5.png")
    }
    assert few["frechet"] != more["frechet"]
    tiles = read_png(out / real["picture"]).reshape(4, 8, 8, 8, 3).transpose(0, 2, 4, 1, 3).reshape(16, 2, 3, 8, 8)
    reference = quality.reference(str(data), detector=str(tmp_path / "d.pt"), others=10)
    left, right = torch.from_numpy(tiles).unbind(1)
    assert {image.numpy().tobytes() for image in left} <= {image.numpy().tobytes() for image in reference.others}
    where = quality.nearest(reference.features_of(left), reference.features)[1][:, 0]
    assert torch.equal(right, reference.images[where])
    lines = list(csv.DictReader((out / "quality.csv").open()))
    assert float(lines[1]["recall"]) == few["recall"] and lines[2]["frechet"] == ""
    text = (out / "quality.html").read_text()
    assert "10 images against 30 training images" in text and "FD-ENL0" in text and text.count("data:image/png") == 7
    check_in_a_browser(out / "quality.html", tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seeds=0-9", "the training images of .* are not known; expected --data=PATH"),
        ("--data=demo", r"images of demo have shape \(1, 32, 32\), those of the network \(3, 8, 8\)"),
        ("--data=nothing.zip", "nothing.zip"),
        ("--features=vgg", "no features 'vgg'"),
        ("--seeds=0-3", "--seeds are 4; expected at least 8"),
    ],
)
def test_bad_input_is_one_line(tmp_path, data, option, message):
    given = [] if option.startswith("--data") or "0-9" in option else [f"--data={data}"]
    args = ("quality", f"--network={tiny_checkpoint(tmp_path)}", f"--outdir={tmp_path / 'out'}", *given, option)
    result = run(*args)
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()
