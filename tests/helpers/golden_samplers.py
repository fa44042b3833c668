"""What a golden run of a sampler is made of: its denoiser, its draws, and a record of the evaluations."""

import numpy as np
import torch

from edm_fast.networks import build
from edm_fast.sampling import StackedRandomGenerator
from helpers import analytic_denoisers as denoisers
from helpers import golden_cases as g


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def analytic(arrays, name):
    """The denoiser a golden config calls `name`: gauss or mix, then _cond, _wide, _limits or _table."""
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
    return denoisers.Gauss(means, 0.9 if variant == "wide" else 0.45, **kwargs)


class Recorder:
    """Passes calls on and notes what the denoiser is evaluated at."""

    def __init__(self, net):
        self.net, self.sigmas, self.x = net, [], []

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, x, sigma, labels):
        self.sigmas.append(float(sigma))
        self.x.append(x)
        return self.net(x, sigma, labels)


def network(entry):
    return loaded(g.by_id(entry["config"]["network"]))


def loaded(source):
    """The network of an entry with its weights."""
    arrays, config = g.arrays(source), source["config"]
    net = build(config["class"], config["kwargs"])
    state = {name[len("param/") :]: tensor(value) for name, value in arrays.items() if name.startswith("param/")}
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def draws(run, arrays, shape, label_dim, latents_name="latents"):
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
    np.testing.assert_allclose(latents, arrays[f"{name}/{latents_name}"], rtol=1e-6, atol=1e-6)
    if labels is not None:
        np.testing.assert_array_equal(labels, arrays[f"{name}/labels"])
    return latents, labels, randn_like
