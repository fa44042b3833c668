"""Golden runs of the generate command: files, pixels, and the sampler's output before it became pixels."""

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from edm_fast import native, use_backend
from edm_fast.checkpoint import load
from edm_fast.cli import main
from edm_fast.cli._networks import prepared, way_to_draw
from edm_fast.cli._sampler import sampler_for
from edm_fast.cli.generate import command
from edm_fast.sampling import deal_seeds, sample_seeds
from helpers import golden_cases as g
from helpers.command_line import arguments


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    """Plain PyTorch, and the accelerated network that is the default."""
    if request.param == "auto" and native.cpu_reason() is not None:
        pytest.skip(str(native.cpu_reason()))
    with use_backend(request.param):
        yield request.param


def runs():
    return [
        pytest.param(entry, run, id=f"{entry['id']}/{run['name']}")
        for entry in g.entries("generate")
        for run in entry["config"]["runs"]
    ]


@pytest.mark.parametrize(("entry", "run"), runs())
def test_golden_files(entry, run, backend, tmp_path):
    arrays, name = g.arrays(entry), run["name"]
    args = [f"--network={g.path(entry, run['checkpoint'])}", f"--outdir={tmp_path / 'out'}", "--device=cpu"]
    result = CliRunner().invoke(main, ["generate", *args, *arguments(command, run["options"])])
    assert result.exit_code == 0, result.output
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == sorted(run["files"])
    modes = set()
    for file in files:
        with PIL.Image.open(tmp_path / "out" / file) as image:
            modes.add(image.mode)
            got, want = np.asarray(image).astype(int), arrays[f"{name}/{file}"].astype(int)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= entry["tolerance"]["pixels_atol"]
    assert sorted(modes) == sorted(run["modes"])


@pytest.mark.parametrize(("entry", "run"), runs())
def test_golden_raw(entry, run, backend):
    context = command.make_context("generate", ["--network=n", "--outdir=o", *arguments(command, run["options"])])
    sampler, kwargs = sampler_for(context.params)
    assert sampler.__name__ in [f"{kind}_sampler" for kind in run["sampler"]]
    net = load(g.path(entry, run["checkpoint"]))
    parts = deal_seeds(context.params["seeds"], context.params["max_batch_size"])
    way = way_to_draw(None, torch.device("cpu"))
    assert way.startswith("plain" if backend == "reference" else "accelerated")
    ready = prepared(net, way)
    raw = torch.cat([sample_seeds(ready, sampler, p, context.params["class_idx"], **kwargs) for p in parts if p])
    g.check(entry, f"{run['name']}/raw", raw)
