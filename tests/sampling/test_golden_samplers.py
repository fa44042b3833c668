"""Golden samplers: on analytic denoisers (only the sampler matters) and on small networks."""

import numpy as np
import pytest
import torch

from edm_fast.networks import build
from edm_fast.sampling import StackedRandomGenerator, ablation_sampler, edm_sampler
from helpers import analytic_denoisers as denoisers
from helpers import golden_cases as g

SAMPLERS = {"edm": edm_sampler, "ablation": ablation_sampler}


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def analytic(arrays, name):
    """The denoiser a golden config calls `name`: gauss or mix, then _cond, _limits or _table."""
    base, _, variant = name.partition("_")
    kwargs = {}
    if variant == "table":
        table = tensor(arrays["denoiser/table"])
        kwargs = {"table": table, "sigma_min": table[table > 0].min().item(), "sigma_max": table.max().item()}
    elif variant == "limits":
        kwargs = {"sigma_min": 0.02, "sigma_max": 50}
    if base == "mix":
        parts = [tensor(arrays[f"denoiser/mix_{part}"]) for part in ("means", "sds", "weights")]
        return denoisers.Mixture(*parts, **kwargs)
    means = tensor(arrays["denoiser/means"])
    if variant == "cond":
        return denoisers.Gauss(means, 0.35, label_dim=len(means), **kwargs)
    return denoisers.Gauss(means, 0.45, **kwargs)


class Recorder:
    """Passes calls on and notes the noise levels asked for."""

    def __init__(self, net):
        self.net, self.sigmas = net, []

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, x, sigma, labels):
        self.sigmas.append(float(sigma))
        return self.net(x, sigma, labels)


def network(entry):
    source = g.by_id(entry["config"]["network"])
    arrays, config = g.arrays(source), source["config"]
    net = build(config["class"], config["kwargs"])
    state = {name[len("param/") :]: tensor(value) for name, value in arrays.items() if name.startswith("param/")}
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def draws(run, arrays, shape, label_dim):
    """(latents, labels, randn_like) as the run drew them; the arrays recorded must come out again."""
    name = run["name"]
    if run.get("rng") == "global":
        torch.manual_seed(run["seeds"][0])
        latents, labels, randn_like = torch.randn(shape), None, torch.randn_like
        if label_dim:
            labels = torch.eye(label_dim)[torch.randint(label_dim, [shape[0]])]
    else:
        rnd = StackedRandomGenerator("cpu", run["seeds"])
        latents, labels, randn_like = rnd.randn(shape), None, rnd.randn_like
        if label_dim:
            labels = torch.eye(label_dim)[rnd.randint(label_dim, size=[shape[0]])]
    np.testing.assert_allclose(latents, arrays[f"{name}/latents"], rtol=1e-6, atol=1e-6)
    if labels is not None:
        np.testing.assert_array_equal(labels, arrays[f"{name}/labels"])
    return latents, labels, randn_like


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
