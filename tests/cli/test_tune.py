"""edm-fast tune and generate --sampler: the files, what is refused, and the demo model's sampler."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_fast import load_sampler
from edm_fast.evaluation import tuning
from edm_fast.evaluation.accuracy import error_levels
from edm_fast.evaluation.tuning import _fit, _trials
from edm_fast.sampling.images import read_png
from helpers.command_line import refused, run
from helpers.tiny_networks import tiny_checkpoint

# Heun's method in 256 steps, precision exact, seeds 1000 to 1015: edm_fast.evaluation.tuning.Truth(load("demo"), 256,
# "heun"), cut to [-1, 1] and rounded to 1/32767
TRUTH = Path(__file__).parent / "demo-truth.npz"
SEVEN = Path(__file__).parent / "demo-7.sampler.json"


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """A tiny network and its sampler file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning.Truth.__init__, "__defaults__", (4, "ipndm"))
    monkeypatch.setitem(_fit.TEACHER, "num_steps", 8)
    monkeypatch.delitem(_trials.GRIDS, "optimised")  # takes seconds
    network = tiny_checkpoint(tmp_path)
    options = ("--nfe=2,3", "--max-error=500", "--seeds=0-7", "--solvers=euler,heun", "--device=cpu")
    result = run("tune", network, *options)
    assert result.exit_code == 0, result.output
    assert (
        re.search(r"2  \w+ +euler .* kept\n", result.output) and "2 evaluations, certified within 500" in result.output
    )
    return "tiny.sampler.json"


def test_generate_draws_with_what_tune_has_found(tuned, tmp_path):
    assert read_png("tiny.sampler.png").shape == (2 * 8, 2 * 3 * 8, 3)
    found = load_sampler(tuned)
    levels = ",".join(map(str, found.settings["levels"]))
    draw = ("generate", "--network=tiny.safetensors", "--seeds=3,4", "--device=cpu")
    result = run(*draw, "--outdir=a", f"--sampler={tuned}")
    assert result.exit_code == 0, result.output
    assert found.describe() in result.output and "2 evaluations per image" in result.output
    way = f"--precision={found.precision}" if found.precision != "stored" else "--seeds=3,4"
    assert run(*draw, "--outdir=b", "--solver=euler", f"--levels={levels}", way).exit_code == 0
    for seed in (3, 4):
        assert np.array_equal(read_png(f"a/00000{seed}.png"), read_png(f"b/00000{seed}.png"))
    result = run("tune", "tiny.safetensors", f"--check={tuned}", "--seeds=0-3", "--device=cpu")
    error = found.error
    assert result.exit_code == 0 and error["seeds"] == "0-3"
    assert f"mean {error['mean']:.3f} +- {error['se']:.3f} levels" in result.output


def test_what_does_not_go_with_a_sampler_is_refused(tuned, tmp_path):
    draw = ("generate", "--network=tiny.safetensors", "--outdir=a", "--seeds=3", f"--sampler={tuned}", "--device=cpu")
    for option in ("--steps=3", "--solver=heun", "--nfe=3", "--levels=karras", "--S_churn=1", "--disc=vp", "--rho=5"):
        name = option.partition("=")[0]
        assert f"{name} does not go with --sampler" in refused(*draw, option)
    assert "--guidance does not go with --sampler" in refused(*draw, "--guidance=2")
    assert "expected no --precision" in refused(*draw, "--precision=exact")
    # planted: another checkpoint's, cut short, levels that rise
    tiny_checkpoint(tmp_path, "other", channel_mult=[1, 1])
    assert "was tuned for tiny.safetensors" in refused(*draw, "--network=other.safetensors")
    assert "was tuned for" in refused("tune", "other.safetensors", f"--check={tuned}", "--device=cpu")
    text = Path(tuned).read_text()
    Path(tuned).write_text(text[: len(text) // 2])
    assert "cut short" in refused(*draw)
    found = json.loads(text)
    found["settings"]["levels"][0:2] = found["settings"]["levels"][1::-1]
    Path(tuned).write_text(json.dumps(found))
    assert "expected falling levels" in refused(*draw)
    assert not Path("a").exists()


def test_bad_options():
    for option, line in {
        "--nfe=0": "--nfe expects numbers",
        "--solvers=huen": "near names: heun",
        "--precisions=fp17": "expected some of",
        "--seeds=1,2": "expected at least 4",
        "--max-error=0": "max-error",
    }.items():
        assert line in refused("tune", "demo", option, "--device=cpu")


def test_a_bound_that_is_not_kept(tuned):
    options = ("--nfe=2", "--max-error=1e-3", "--seeds=0-7", "--solvers=euler", "--device=cpu", "--out=none.json")
    result = run("tune", "tiny.safetensors", *options)
    assert result.exit_code == 1 and "no sampler of 2 to 2 evaluations keeps the bound" in result.output
    assert not Path("none.json").exists()


def drawn(outdir, *options):
    """The images of the seeds of TRUTH, by the command line, (16, 1, 32, 32)."""
    result = run("generate", "--network=demo", "--seeds=1000-1015", f"--outdir={outdir}", "--device=cpu", *options)
    assert result.exit_code == 0, result.output
    pixels = np.stack([read_png(Path(outdir) / f"00{seed}.png") for seed in range(1000, 1016)])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() + 0.5 - 128) / 127.5, result.output


@pytest.mark.parametrize("sampler, most, steps", [("demo", 10, 18), (SEVEN, 7, 12)])
def test_few_evaluations_come_as_near_as_heun(sampler, most, steps, tmp_path):
    """10 evaluations are no farther from the 256-step solution than Heun's 35, and 7 no farther than its 23."""
    truth = torch.from_numpy(np.load(TRUTH)["images"]).double() / 32767
    ours, output = drawn(tmp_path / "ours", f"--sampler={sampler}")
    evaluations = int(re.search(r"(\d+) evaluations per image", output)[1])
    assert evaluations <= most and f"{evaluations} evaluations, certified within" in output
    heun, output = drawn(tmp_path / "heun", f"--steps={steps}")
    assert f"{2 * steps - 1} evaluations per image" in output
    assert error_levels(ours, truth).mean() < error_levels(heun, truth).mean()
