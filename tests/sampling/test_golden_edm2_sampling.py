"""EDM2's sampler on denoisers in closed form and on small networks, and the order of all draws."""

import numpy as np
import pytest
import torch

from edm_fast import networks
from edm_fast.sampling import Guidance, StackedRandomGenerator, deal_seeds, edm2_sampler, sample
from helpers import golden_cases as g
from helpers.golden_samplers import Recorder, analytic, draws, loaded


def runs():
    for entry in g.edm2("samplers"):
        for run in entry["config"]["runs"]:
            yield pytest.param(entry, run, id=f"{entry['id']}/{run['name']}")


def denoiser(arrays, dtype, name):
    if name.startswith("edm2/networks/"):
        return loaded(g.index("edm2.json")[name])
    found = analytic(arrays, name)
    found.dtype = dtype
    return found


@pytest.mark.parametrize(("entry", "run"), list(runs()))
def test_golden_edm2_sampler(entry, run):
    arrays, name, dtype = g.arrays(entry), run["name"], getattr(torch, run["dtype"])
    kwargs = dict(run["kwargs"])
    weight = kwargs.pop("guidance", 1)
    net = Recorder(denoiser(arrays, dtype, run.get("net") or run["network"]))
    reference = Recorder(denoiser(arrays, dtype, run["gnet"])) if run["gnet"] else None
    latents, labels, randn_like = draws(run, arrays, arrays[f"{name}/noise"].shape, net.label_dim, "noise")
    noise = []

    def recorded(x):
        assert x.dtype == dtype
        noise.append(randn_like(x))
        return noise[-1]

    guidance = None if reference is None else Guidance(weight, reference)
    out = edm2_sampler(net, latents, labels, recorded, guidance=guidance, dtype=dtype, **kwargs)
    assert out.dtype == dtype
    entry = {**entry, "tolerance": run.get("tolerance", entry["tolerance"])}
    if "churn_draws" in run:
        assert len(noise) == run["churn_draws"]
    if noise and f"{name}/churn_noise" in arrays:
        np.testing.assert_allclose(torch.stack(noise), arrays[f"{name}/churn_noise"], rtol=1e-6, atol=1e-6)
    if f"{name}/sigmas" in arrays:
        g.check(entry, f"{name}/sigmas", np.array(net.sigmas), arrays[f"{name}/sigmas"])
    if f"{name}/reference_sigmas" in arrays:
        g.check(entry, f"{name}/reference_sigmas", np.array(reference.sigmas), arrays[f"{name}/reference_sigmas"])
    elif reference is not None and "net" in run:
        assert weight == 1 and not reference.sigmas
    g.check(entry, f"{name}/out", out, arrays[f"{name}/out"])


@pytest.mark.parametrize("entry", g.edm2("generate", lambda e: "cases" in e["config"]), ids=g.entry_id)
def test_golden_edm2_seed_batches(entry):
    for case in entry["config"]["cases"]:
        seeds = list(range(case["first_seed"], case["first_seed"] + case["num_seeds"]))
        world = case["world_size"]
        parts = deal_seeds(seeds, case["max_batch"], world)
        assert [parts[rank::world] for rank in range(world)] == case["batches_per_rank"]


@pytest.mark.parametrize("entry", g.edm2("rng", lambda e: "order" in e["config"]), ids=g.entry_id)
def test_golden_edm2_stacked_generators(entry):
    config = entry["config"]
    assert config["order"] == ["randn float32", "randint", "randn float32"]
    rnd, n = StackedRandomGenerator("cpu", config["seeds"]), len(config["seeds"])
    noise = rnd.randn([n, *config["shape"]])
    g.check(entry, "noise", noise)
    g.check(entry, "labels", rnd.randint(config["label_dim"], size=[n]))
    g.check(entry, "churn_noise", rnd.randn_like(noise))


def test_every_solver_in_float32():
    """The type of the state is an option of `sample`, too: of its result, and of what the denoiser is given."""
    net = networks.build(
        "Precond",
        {
            "img_resolution": 4,
            "img_channels": 1,
            "label_dim": 0,
            "model_channels": 4,
            "channel_mult": [1],
            "num_blocks": 1,
        },
    ).eval()
    net.unet.out_gain.data.fill_(0.5)
    latents, wide = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), []
    for dtype in (torch.float32, None):
        recorder = Recorder(net)
        with torch.no_grad():
            wide.append(sample(recorder, latents, solver="dpmpp", num_steps=4, dtype=dtype))
        assert {x.dtype for x in recorder.x} == {wide[-1].dtype}
    assert [x.dtype for x in wide] == [torch.float32, torch.float64]
    assert 0 < float((wide[0] - wide[1]).abs().max()) < 1e-4
