"""Golden samplers: on analytic denoisers (only the sampler matters) and on small networks."""

import numpy as np
import pytest
import torch

from edm_fast.sampling import ablation_sampler, edm_sampler
from helpers import golden_cases as g
from helpers.golden_samplers import Recorder, analytic, draws, network

SAMPLERS = {"edm": edm_sampler, "ablation": ablation_sampler}


def runs(where=lambda entry: True):
    for entry in g.entries("samplers", where):
        for run in entry["config"]["runs"]:
            yield pytest.param(entry, run, id=f"{entry['id']}/{run['name']}")


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.mark.parametrize(("entry", "run"), list(runs()))
def test_golden(entry, run, cache):
    if entry["id"] not in cache:
        cache.clear()
        cache[entry["id"]] = (g.arrays(entry), network(entry) if "network" in entry["config"] else None)
    arrays, shared = cache[entry["id"]]
    net = Recorder(shared if shared is not None else analytic(arrays, run["denoiser"]))
    name = run["name"]
    latents, labels, randn_like = draws(run, arrays, arrays[f"{name}/latents"].shape, net.label_dim)
    noise = []

    def recorded(x):
        assert x.dtype == torch.float64
        noise.append(randn_like(x))
        return noise[-1]

    sampler = SAMPLERS[run.get("sampler") or entry["config"]["sampler"]]
    out = sampler(net, latents, labels, recorded, **run["kwargs"])
    assert out.dtype == torch.float64
    assert len(noise) == run["kwargs"].get("num_steps", 18)
    if f"{name}/noise" in arrays:
        np.testing.assert_allclose(torch.stack(noise), arrays[f"{name}/noise"], rtol=1e-6, atol=1e-6)
    g.check(entry, f"{name}/sigmas", np.array(net.sigmas), arrays[f"{name}/sigmas"])
    g.check(entry, f"{name}/out", out, arrays[f"{name}/out"])


@pytest.mark.skipif(g.same_arithmetic() is not None, reason=str(g.same_arithmetic()))
@pytest.mark.parametrize(("entry", "run"), list(runs(lambda entry: "network" not in entry["config"])))
def test_bits(entry, run):
    """On analytic denoisers every noise level and every image has the bits of the published samplers."""
    arrays, name = g.arrays(entry), run["name"]
    net = Recorder(analytic(arrays, run["denoiser"]))
    latents, labels, randn_like = draws(run, arrays, arrays[f"{name}/latents"].shape, net.label_dim)
    sampler = SAMPLERS[run.get("sampler") or entry["config"]["sampler"]]
    out = sampler(net, latents, labels, randn_like, **run["kwargs"])
    g.check_bits(entry, f"{name}/sigmas", torch.tensor(net.sigmas, dtype=torch.float64))
    g.check_bits(entry, f"{name}/out", out)
