"""EDM2's averages of weights and their reconstruction against the golden data."""

import numpy as np
import pytest
import torch

from edm_fast.diffusion import ema
from edm_fast.errors import UserError
from edm_fast.training import PowerFunctionEMA, TraditionalEMA
from helpers import golden_cases as g


@pytest.mark.parametrize("entry", g.edm2("ema", lambda e: "beta_args" in e["config"]), ids=g.entry_id)
def test_golden_ema_functions(entry):
    arrays = g.arrays(entry)
    g.check(entry, "exp_to_std", [ema.std_of_gamma(gamma) for gamma in arrays["exp"]])
    g.check(entry, "std_to_exp", [ema.gamma_of_std(std) for std in arrays["std"]])
    g.check(entry, "beta", [ema.power_beta(*row) for row in arrays["beta_args"]])
    products = [ema.power_products(*([value] for value in row)).item() for row in arrays["correlation_args"]]
    g.check(entry, "correlation", products)
    columns = zip(arrays["response_ofs"], arrays["response_std"], strict=True)
    g.check(entry, "response", np.stack([ema.power_response(t, std, 24) for t, std in columns], 1))
    for std in (0, 0.3):
        with pytest.raises(UserError, match="up to 0.2887"):
            ema.gamma_of_std(std)


def distance(c, t_in, std_in, t, std):
    """Of a combined profile from the wanted one, relative, in L2."""
    own = ema.power_products(t, std, t, std).diagonal()
    mixed = (c * ema.power_products(t_in, std_in, t, std)).sum(0)
    square = own - 2 * mixed + np.einsum("io,ij,jo->o", c, ema.power_products(t_in, std_in, t_in, std_in), c)
    return np.sqrt(np.maximum(square, 0) / own)


def runs():
    for entry in g.edm2("ema", lambda e: "runs" in e["config"]):
        for run in entry["config"]["runs"]:
            yield pytest.param(entry, run, id=f"{entry['id']}/{run['name']}")


@pytest.mark.parametrize(("entry", "run"), list(runs()))
def test_golden_reconstruction_coefficients(entry, run):
    arrays, name = g.arrays(entry), run["name"]
    where = [arrays[f"{name}/{part}"] for part in ("in_ofs", "in_std", "out_ofs", "out_std")]
    c = ema.reconstruction(*where)
    scale = np.abs(arrays[f"{name}/coefs"]).max(0)
    assert np.all(np.abs(c - arrays[f"{name}/coefs"]) <= run["coef_rtol"] * scale)
    np.testing.assert_allclose(distance(c, *where), run["relative_residual"], rtol=1e-3, atol=1e-5)


class Path(torch.nn.Module):
    """w, g and a buffer, whose values a golden path gives."""

    def __init__(self, row, buffer):
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(row[:-1].copy()))
        self.g = torch.nn.Parameter(torch.tensor(row[-1]))
        self.register_buffer("b", torch.from_numpy(buffer.copy()))

    @torch.no_grad()
    def move(self, row, buffer):
        self.w.copy_(torch.from_numpy(row[:-1]))
        self.g.copy_(torch.tensor(row[-1]))
        self.b.copy_(torch.from_numpy(buffer))

    def values(self):
        return torch.cat([self.w, self.g[None]]).detach().numpy()


@pytest.mark.parametrize("entry", g.edm2("ema", lambda e: "tracked_stds" in e["config"]), ids=g.entry_id)
def test_golden_tracking(entry):
    arrays, config = g.arrays(entry), entry["config"]
    batch, path, buffers = config["batch_size"], arrays["path"], arrays["buffer"]
    net = Path(path[0], buffers[0])
    powers = PowerFunctionEMA(net, config["tracked_stds"])
    wanted = PowerFunctionEMA(net, config["wanted_stds"])
    others = {name: TraditionalEMA(net, **kwargs) for name, kwargs in config["traditional"].items()}
    tracked, traditional, snapshots = [], {name: [] for name in others}, {}
    for i in range(1, config["steps"] + 1):
        net.move(path[i], buffers[i])
        for average in (powers, wanted, *others.values()):
            average.update(i * batch, batch)
        tracked.append([average.values() for average in powers.averages])
        for name, average in others.items():
            traditional[name].append(average.averages[0].values())
        for average, suffix in powers.get() if i * batch % config["snapshot_nimg"] == 0 else ():
            snapshots[i * batch, suffix] = np.concatenate([average.values(), average.b.numpy()])
    g.check(entry, "tracked", np.array(tracked))
    for name, rows in traditional.items():
        g.check(entry, f"traditional/{name}", np.array(rows))
    order = [(s["nimg"], s["suffix"]) for s in config["snapshots"]]
    assert sorted(order) == sorted(snapshots)
    half = np.array([snapshots[key] for key in order]).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(half, arrays["snapshots_half"], rtol=1e-3)
    np.testing.assert_allclose([a.values() for a in wanted.averages], arrays["truth"], rtol=1e-5, atol=1e-6)
    # the same from what was stored
    t_in, std_in = [s["nimg"] for s in config["snapshots"]], [s["std"] for s in config["snapshots"]]
    stds = config["wanted_stds"]
    c = ema.reconstruction(t_in, std_in, [max(t_in)] * len(stds), stds)
    rebuilt = np.einsum("io,ik->ok", c, arrays["snapshots_half"][:, :7].astype(np.float64))
    g.check(entry, "reconstructed", rebuilt)
    assert np.abs(rebuilt - arrays["truth"]).max() < 1.5 * entry["reconstruction_error"] * np.abs(arrays["truth"]).max()
    # a state brings its own widths
    state = powers.state_dict()
    assert sorted(state) == config["state_dict_keys"] and state["stds"] == config["state_stds"]
    again = PowerFunctionEMA(net, [0.2])
    again.load_state_dict(state)
    assert [a.values().tolist() for a in again.averages] == [a.values().tolist() for a in powers.averages]
    powers.reset()
    assert all((average.values() == net.values()).all() for average in powers.averages)


def test_averages_follow_the_closed_form():
    """After steps of one size the average is the sum of the weights by the profile, whatever the network did."""
    rows = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    net = Path(rows[0], rows[0, :1])
    average = PowerFunctionEMA(net, [0.1])
    for i, row in enumerate(rows, 1):
        net.move(row, row[:1])
        average.update(64 * i, 64)
    exponent = ema.gamma_of_std(0.1) + 1
    ends = (np.arange(201) / 200) ** exponent
    np.testing.assert_allclose(average.averages[0].values(), np.diff(ends) @ rows, rtol=1e-4, atol=1e-5)
