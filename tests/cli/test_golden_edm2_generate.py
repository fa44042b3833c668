"""Golden runs of EDM2's generate command: files, pixels, and the sampler's output before it was decoded."""

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from edm_fast.checkpoint import load
from edm_fast.cli import main
from edm_fast.cli._networks import prepared, way_to_draw
from edm_fast.cli.generate import command
from edm_fast.data.encoders import StabilityVAEEncoder
from edm_fast.sampling import Guidance, deal_seeds, edm2_sampler, sample_seeds
from helpers import golden_cases as g
from helpers.command_line import arguments
from helpers.linear_vae import LinearVAE


def runs(where=lambda run: True):
    for entry in g.edm2("generate", lambda e: "runs" in e["config"]):
        for run in filter(where, entry["config"]["runs"]):
            yield pytest.param(entry, run, id=f"{entry['id']}/{run['name']}")


def check_pixels(entry, got, want):
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want.astype(int)).max() <= entry["tolerance"]["pixels_atol"]


@pytest.mark.parametrize(("entry", "run"), list(runs()))
def test_golden_edm2_raw(entry, run):
    arrays, options, name = g.arrays(entry), run["options"], run["name"]
    net = load(g.path(entry, run["checkpoint"]))
    way = way_to_draw(None, torch.device("cpu"))
    ready = prepared(net, way)
    reference = prepared(load(g.path(entry, run["gnet"])), way) if run["gnet"] else ready  # itself: of no effect
    kwargs = {k: v for k, v in options.items() if k.startswith("S_") or k == "num_steps"}
    parts = [part for part in deal_seeds(options["seeds"], options.get("max_batch_size", 32)) if part]
    assert parts == run["batches"]
    guidance = Guidance(options.get("guidance", 1), reference)
    draw = [sample_seeds(ready, edm2_sampler, p, options.get("class_idx"), guidance=guidance, **kwargs) for p in parts]
    raw = torch.cat(draw)
    assert raw.dtype == torch.float32
    g.check(entry, f"{name}/raw", raw)
    if net.img_channels == 4:
        decoded = StabilityVAEEncoder(vae=LinearVAE(arrays)).decode(raw)
        for image, file in zip(decoded, run["files"], strict=True):
            check_pixels(entry, image.permute(1, 2, 0).numpy(), arrays[f"{name}/{file}"])


@pytest.mark.parametrize(("entry", "run"), list(runs(lambda run: run["name"].startswith("rgb"))))
def test_golden_edm2_files(entry, run, tmp_path):
    arrays, name, out = g.arrays(entry), run["name"], tmp_path / "out"
    args = [f"--network={g.path(entry, run['checkpoint'])}", f"--outdir={out}", "--device=cpu"]
    result = CliRunner().invoke(main, ["generate", *args, *arguments(command, run["options"])])
    assert result.exit_code == 0, result.output
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert files == sorted(run["files"])
    for file in files:
        with PIL.Image.open(out / file) as image:
            check_pixels(entry, np.asarray(image), arrays[f"{name}/{file}"])


def test_what_the_command_refuses(tmp_path):
    """Latents as pictures, and guidance by labels of zeros, which EDM2's networks are not trained with."""
    entry = g.index("edm2.json")["edm2/generate/end_to_end"]
    for name, options, message in (
        ("latent_cond", [], "images of 4 channels (latents need the decoder"),
        ("rgb_cond", ["--guidance=2"], "--guidance of an EDM2 network needs --gnet"),
        ("rgb_cond", [f"--gnet={tmp_path / 'none.pkl'}", "--class=99"], "note: --gnet without --guidance, the weight,"),
    ):
        network = g.path(entry, f"edm2/checkpoints/{name}.pkl")
        args = ["generate", f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", *options]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 2 and message in result.output
