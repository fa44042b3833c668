"""The scripts of examples/ run as they are, in an empty folder, and their numbers are those of the page."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_fast import SeedSampler, StackedRandomGenerator, accelerate, load, native, sample, use_backend
from edm_fast.sampling import to_uint8
from helpers import peers

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs/interop.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Run a script of examples/; its names."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        with use_backend("auto"):
            return runpy.run_path(str(EXAMPLES / f"{name}.py"))

    return run


def test_all_are_run_and_told():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.stem}"' in text or f'"{path.name}"' in text, f"{path.name} is not tested"
        assert f"examples/{path.name}" in PAGE, f"{path.name} is not on the page"
        assert path.read_text(encoding="utf-8").startswith("# ---\n# jupyter:\n#   jupytext:\n"), path.name


@pytest.mark.parametrize("name, package", [("inpaint", "azula"), ("inpaint_deepinv", "deepinv")])
def test_inpainting(example, name, package):
    """What was seen is kept, the rest is filled in; the page tells by how much."""
    peers.deepinv() if package == "deepinv" else peers.expect(package)
    found = example(name)
    assert found["kept"] < 6
    before, after = (found[name].median().item() for name in ("before", "after"))
    (told,) = re.findall(rf"{package} from (\S+) to (\S+) dB", PAGE.replace("\n", " "))
    assert (before, after) == pytest.approx([float(number) for number in told], abs=0.2)
    assert Path("inpainted.png").exists()


def test_samplers_of_k_diffusion(example, monkeypatch):
    peers.expect("k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.sampling = peers.k_diffusion()
    for name, module in (("k_diffusion", package), ("k_diffusion.sampling", package.sampling)):
        monkeypatch.setitem(sys.modules, name, module)
    found = example("k_diffusion_samplers")
    assert (found["digits"] - found["own"]).abs().max() < 1e-3


def test_pipeline_of_diffusers(example):
    """An image of each class, with contrast, and smooth as noise is not."""
    peers.expect("diffusers")
    images = example("diffusers_pipeline")["images"]
    assert len(images) == 8 and len({*Path().glob("solid-*.png")}) == len(images)
    for image in images:
        pixels = np.asarray(image, dtype=int)
        assert pixels.shape == (32, 32, 3) and pixels.std() > 20
        assert abs(np.diff(pixels, axis=0)).mean() < 20


def test_samples_as_a_dataset(example):
    """Item i is the digit i % 10 of seed i. Workers, order and batch change nothing but the rounding."""
    found = example("samples_as_dataset")
    own = found["digits"]
    latents = StackedRandomGenerator("cpu", range(10)).randn([10, 1, 32, 32])
    with torch.no_grad():
        drawn = sample(own.net, latents, torch.eye(10), solver="ipndm", nfe=9).float().clamp(-1, 1)
    assert (torch.stack([own[seed][0] for seed in range(10)]) - drawn).abs().max() < 0.01
    by_class = {}
    for images, classes in found["batches"]:
        for image, number in zip(images, classes.tolist()):
            by_class.setdefault(number, []).append(image)
    for number, images in by_class.items():
        wanted = torch.stack([own[seed][0] for seed in range(number, len(own), 10)])
        distance = (torch.stack(images)[:, None] - wanted).abs().flatten(2).amax(2)
        assert max(distance.amin(0).max(), distance.amin(1).max()) < 0.01 < distance.max()


def test_a_network_of_the_users_own(example):
    found = example("own_unet")
    assert found["difference"] < 1e-4
    assert (found["y"] - found["block"](found["h"], found["emb"])).abs().max() < 1e-4


@pytest.mark.slow
def test_ray_data(tmp_path):
    """Two workers draw the images of one process. Ray is 600 MB with what it needs, too much for `make test`."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed; pip install 'ray[data]'")
    import pyarrow.parquet

    script = [sys.executable, str(EXAMPLES / "ray_data.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}
    subprocess.run(script, cwd=tmp_path, env=environment, check=True, timeout=300)
    rows = sorted(pyarrow.parquet.read_table(tmp_path / "digits").to_pylist(), key=lambda row: row["seed"])
    assert [row["seed"] for row in rows] == [*range(128)] and len({row["worker"] for row in rows}) == 2
    sampler = SeedSampler(accelerate(load("demo")), solver="ipndm", nfe=9)
    wanted = np.concatenate([to_uint8(sampler(range(start, start + 16))) for start in range(0, 128, 16)])
    difference = np.array([row["pixels"] for row in rows]) - wanted.reshape(128, -1).astype(int)
    # each process takes what it has measured to be the fastest, whose rounding may move a value over the next level
    assert abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3
