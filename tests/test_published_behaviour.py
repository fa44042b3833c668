"""Rows of docs/published-behaviour.md that no other test fixes, and that its files are there."""

import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from edm_fast import cli, distributed, networks
from edm_fast.data import ImageFolderDataset
from edm_fast.data.convert import convert
from edm_fast.networks import PRESETS, presets
from edm_fast.sampling import edm_sampler, sample_seeds
from edm_fast.training import _recipes
from helpers import tiny_training
from helpers.tiny_networks import tiny, tiny_checkpoint

ROOT = Path(__file__).parents[1]


def test_the_page_names_files_that_are_there():
    page = (ROOT / "docs/published-behaviour.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "what happens"]
    assert len(rows) > 30 and all(len(row) == 4 for row in rows)
    folder = ROOT / "edm_fast"
    for *_, where in rows:
        first, *more = re.findall(r"`([^`]+)`", where)
        assert (folder / first).is_file(), where
        assert all((folder / first).with_name(name).is_file() for name in more), where


def save(folder, names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / name)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["1/a.png", "10/a.png", "2/a.png"], [0, 1, 2]),
        (["B/a.png", "a/a.png", "top.png"], [1, 2, 0]),
        (["only/a.png", "only/b/c.png"], None),
    ],
)
def test_classes_of_folders(tmp_path, names, classes):
    save(tmp_path / "in", names)
    convert(tmp_path / "in", tmp_path / "out.zip")
    data = ImageFolderDataset(tmp_path / "out.zip", use_labels=True)
    assert [row.argmax() for _, row in data] == classes if classes else data.label_dim == 0


def test_folders_inside_a_zip_are_no_classes(tmp_path):
    save(tmp_path / "in", ["a/0.png", "b/0.png"])
    convert(shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in"), tmp_path / "out.zip")
    assert not ImageFolderDataset(tmp_path / "out.zip", use_labels=True).has_labels


def test_classes_are_counted_before_a_part_is_chosen(tmp_path):
    path = tiny_training.write_dataset(tmp_path / "a.zip", count=40, classes=40)
    assert ImageFolderDataset(path, use_labels=True, max_size=2).label_dim == 40


def test_levels_are_limited_to_those_of_the_network():
    net = tiny("VPPrecond")
    latents = torch.randn(1, 3, 8, 8)
    assert torch.equal(edm_sampler(net, latents, sigma_max=1000), edm_sampler(net, latents, sigma_max=net.sigma_max))


def test_networks_with_classes_draw_other_noise_later():
    def noise(label_dim):
        drawn = []

        def sampler(net, latents, labels, randn_like):
            drawn.extend([latents, randn_like(latents)])
            return latents

        sample_seeds(tiny(label_dim=label_dim), sampler, [3])
        return drawn

    (start, later), (same, other) = noise(0), noise(4)
    assert torch.equal(start, same) and not torch.equal(later, other)


def test_images_of_an_earlier_run_are_written_over(tmp_path):
    options = [
        "generate",
        f"--network={tiny_checkpoint(tmp_path)}",
        f"--outdir={tmp_path}",
        "--seeds=0",
        "--device=cpu",
    ]
    written = []
    for steps in (2, 3):
        assert CliRunner().invoke(cli.main, [*options, f"--steps={steps}"]).exit_code == 0
        written.append((tmp_path / "000000.png").read_bytes())
    assert written[0] != written[1]


def attending(arch, side, **changes):
    """Names of the blocks that have attention."""
    kwargs = {"img_resolution": side, "img_channels": 3, **presets.ARCHITECTURES[arch], "num_blocks": 1, **changes}
    net = networks.build("EDMPrecond", kwargs)
    return {name[: -len(".qkv")].removeprefix("model.") for name, _ in net.named_modules() if name.endswith(".qkv")}


@pytest.mark.parametrize(
    ("arch", "side", "blocks"),
    [
        ("ddpmpp", 32, {"enc.16x16_block0", "dec.16x16_block1", "dec.8x8_in0"}),
        ("ddpmpp", 28, {"dec.7x7_in0"}),
        ("ncsnpp", 48, {"dec.12x12_in0"}),
        ("adm", 96, {"dec.12x12_in0"}),
    ],
)
def test_attention_needs_a_listed_size(arch, side, blocks):
    assert attending(arch, side, model_channels=64) == blocks


def test_narrow_adm_blocks_have_no_attention():
    assert attending("adm", 32, model_channels=32, channel_mult=[1]) == set()
    assert attending("adm", 32, model_channels=64, channel_mult=[1])


def test_names_of_models_tell_the_network_not_the_preconditioner():
    for name, (class_name, kwargs) in PRESETS.items():
        if name.startswith("edm-"):
            assert class_name == "EDMPrecond" and (kwargs.get("embedding_type") == "fourier") == name.endswith("-ve")


def test_frequencies_are_random_and_never_trained():
    kwargs = {"img_resolution": 8, "img_channels": 3, **presets.ARCHITECTURES["ncsnpp"], "model_channels": 8}
    a, b = (networks.build("EDMPrecond", {**kwargs, "num_blocks": 1}) for _ in range(2))
    assert "model.map_noise.freqs" in dict(a.named_buffers()) and "model.map_noise.freqs" not in dict(
        a.named_parameters()
    )
    assert not torch.equal(a.model.map_noise.freqs, b.model.map_noise.freqs)


def test_use_fp16_does_nothing_on_cpus():
    x, sigma = torch.randn(1, 3, 8, 8), torch.tensor(0.7)
    assert torch.equal(tiny(use_fp16=True)(x, sigma), tiny()(x, sigma))


def test_seeds_depend_on_the_number_of_processes(monkeypatch):
    found = []
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        _recipes.seed_everything(3)
        found.append(torch.initial_seed())
    assert found == [np.random.RandomState(seed).randint(1 << 31) for seed in (3, 6, 7)]
