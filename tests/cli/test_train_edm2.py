"""edm-fast train --arch=edm2: from a data set to averages of several widths, and images of one that was not tracked."""

import json

import pytest

from edm_fast.checkpoint import load
from helpers import tiny_training as tiny
from helpers.command_line import refused, run

TINY = ["--arch=edm2", "--cbase=8", "--cres=1", "--num-blocks=1", "--batch=128", "--tick=1", "--device=cpu"]


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "digits.zip")


def test_from_data_to_an_average_of_another_width(tmp_path, data):
    out, duration = tmp_path / "runs", f"--duration={2 / 1024}"
    args = [
        f"--outdir={out}",
        f"--data={data}",
        "--preset=edm2-img64-s",
        duration,
        "--snap=1",
        "--workers=0",
        *TINY,
    ]
    result = run("train", *args, "--preview=0")
    assert result.exit_code == 0, result.output
    (folder,) = out.iterdir()
    assert folder.name == "00000-digits-cond-edm2-edm-gpus1-batch128-fp16"
    stored = [f"network-snapshot-000000{k}-0.{std}.safetensors" for k in (0, 1, 2) for std in ("050", "100")]
    assert sorted(path.name for path in folder.glob("network*")) == stored
    settings = json.loads((folder / "training_options.json").read_text())
    assert settings["lr_kwargs"] == {"ref_lr": 0.01, "ref_batches": 35000, "rampup_Mimg": 10}
    assert settings["loss_kwargs"]["P_std"] == 1.6 and settings["total_kimg"] == 2.048
    made = tmp_path / "averages"
    result = run("ema", "reconstruct", f"--indir={folder}", f"--outdir={made}", "--std=0.07")
    assert result.exit_code == 0, result.output
    (path,) = made.iterdir()
    assert path.name == "phema-0000002-0.070.safetensors"
    net = load(path)
    assert (type(net).__name__, net.label_dim, net.img_channels) == ("Precond", 3, 1)
    pictures = tmp_path / "pictures"
    result = run("generate", f"--network={path}", f"--outdir={pictures}", "--seeds=0-1", "--steps=2", "--device=cpu")
    assert result.exit_code == 0, result.output
    assert sorted(picture.name for picture in pictures.iterdir()) == ["000000.png", "000001.png"]


def test_what_it_refuses(tmp_path, data):
    common = ["train", f"--outdir={tmp_path / 'runs'}", f"--data={data}", "-n", *TINY]
    assert "--augment does not go with --arch=edm2" in refused(*common, "--augment=0.1")
    assert "--precond does not go with --arch=edm2" in refused(*common, "--precond=vp")
    assert "--tick=1, in 1024 images, is no multiple of --batch=100; expected --tick=25 or" in refused(
        *common, "--batch=100"
    )
    assert "--ema-std needs --arch=edm2" in refused(*common, "--arch=ddpmpp", "--ema-std=0.1")
    assert "--decay needs --arch=edm2" in refused(*common, "--arch=ddpmpp", "--decay=10")
    assert not (tmp_path / "runs").exists()


def test_presets_give_way_to_options(tmp_path):
    data = tiny.write_dataset(tmp_path / "larger.zip", size=8)
    args = ["train", "-n", f"--outdir={tmp_path}", f"--data={data}", "--arch=edm2", "--device=cpu", "--tick=128"]
    result = run(*args, "--preset=edm2-img512-xl", "--lr=0.005", "--ema-std=0.1")
    assert result.exit_code == 0, result.output
    settings = json.loads(result.output[result.output.index("{") : result.output.rindex("}") + 1])
    network = settings["network_kwargs"]
    assert network["class_name"].endswith(".Precond") and network["channel_mult"] == [1, 2, 3, 4]
    assert (network["model_channels"], network["dropout"], settings["batch_size"]) == (384, 0.1, 2048)
    assert settings["lr_kwargs"] == {"ref_lr": 0.005, "ref_batches": 70000, "rampup_Mimg": 10}
    assert settings["ema_kwargs"]["stds"] == [0.1] and settings["kimg_per_tick"] == 131.072
    assert settings["loss_kwargs"]["P_mean"] == -0.4 and settings["total_kimg"] == 1280 * 1024 * 1.024
    assert "ema_halflife_kimg" not in settings and "augment_kwargs" not in settings
