"""Golden runs of published few-step solvers: each evaluation, each draw, and the result."""

import math

import numpy as np
import pytest
import torch

from edm_fast.sampling import Guidance, _optimised, gits, levels, optimised_levels, sample
from edm_fast.sampling.solvers import _gits, registry
from helpers import golden_cases as g
from helpers.golden_samplers import Recorder, analytic, draws, network

INDEX = g.index("solvers.json")
# what is not built yet: names of solvers, and entries that are no runs of a solver
UNBUILT: set[str] = set()
GRIDS = {"karras": "karras", "polynomial": "karras", "logsnr": "logsnr", "vp2": "time_uniform"}
GRIDS |= {"time_uniform": "time_uniform"}


def runs(where):
    for entry in INDEX.values():
        for run in entry["config"]["runs"]:
            if where(entry["id"]):
                unbuilt = UNBUILT & {entry["id"], run.get("solver")}
                marks = [pytest.mark.skip(reason=f"{unbuilt.pop()} is not built yet")] if unbuilt else []
                yield pytest.param(entry, run, id=f"{entry['id']}/{run['name']}", marks=marks)


def test_what_is_built_is_tested():
    assert not UNBUILT & {*registry()}


def options(run):
    """A run's options as `edm_fast.sample` takes them."""
    found = dict(run["options"])
    for name in ("deis_mode", "order"):  # what the solver's name and order say
        found.pop(name, None)
    if run["solver"] in ("adams", "deis_tab"):  # ours has the exact integrals and the published clock
        for name in ("quadrature_points", "clock_sigma_min", "clock_sigma_max"):
            found.pop(name, None)
    found.pop("float32_times", None)  # ours are float64
    if "noise_function" in found:
        found["phi"] = {1: 1, 2: 2, 5: 2.5, 7: None}[found.pop("noise_function")]
    if found.pop("denoise_to_zero", False):
        found["ends"] = "denoised"
    if run["solver"] == "sdm":  # what finds the switch: see solvers/test_sdm.py
        found = {"switch": found["switch_step"]}
    if "predict_x0" in found:
        found["form"] = "data" if found.pop("predict_x0") else "noise"
    if found.get("lower_order_final") == "only a step to zero":
        found["lower_order_final"] = False
    if found.get("lower_order_final") is True and run["package"] == "diffusers" and run["solver"] in SHORT:
        found["lower_order_final"] = "short"  # in runs of fewer than 15 steps
    return found if run["order"] is None else {**found, "order": run["order"]}


def guidance(run, arrays):
    """(Guidance, its network, which notes its evaluations) and the options that are left; nothing for other runs."""
    found = dict(run["options"])
    if "guidance" not in found:
        return None, None, run
    reference = Recorder(analytic(arrays, found.pop("reference")))
    interval = found.pop("sigma_lo", 0), found.pop("sigma_hi", math.inf)
    guide = Guidance(found.pop("guidance"), reference, interval)
    for name in ("both_evaluations_of_a_step_alike", "first_step", "last_step"):
        found.pop(name, None)
    return guide, reference, {**run, "options": found}


SHORT = ("dpmpp", "dpmpp_2m_sde", "exp_ab_eps")


def grid(run, arrays):
    """The levels by name where they have one, otherwise as a list."""
    kind = run["grid"]
    if kind["type"] not in GRIDS:
        return {"levels": arrays[f"{run['name']}/grid"]}
    found = {"levels": GRIDS[kind["type"]], "num_steps": run["steps"], "ends": run["ends"]}
    return found | {name: kind[name] for name in ("sigma_min", "sigma_max", "rho") if name in kind}


@pytest.mark.parametrize(
    ("entry", "run"), list(runs(lambda id: id not in {"solvers/schedules", "solvers/optimised", "solvers/search"}))
)
def test_golden(entry, run):
    arrays, name = g.arrays(entry), run["name"]
    if "network" in entry["config"]:
        net = network({"config": entry["config"]})
        net.sigma_min, net.sigma_max = run.get("network_limits", (net.sigma_min, net.sigma_max))
    else:
        net = analytic(arrays, run["denoiser"])
    net = Recorder(net)
    latents, labels, randn_like = draws(run, arrays, arrays[f"{name}/latents"].shape, net.label_dim)
    guide, reference, run = guidance(run, arrays)
    noise = []

    def recorded(x):
        noise.append(randn_like(x))
        return noise[-1]

    settings = {"solver": run["solver"], **grid(run, arrays), **options(run)}
    with torch.no_grad():
        out = sample(net, latents, labels, recorded, guidance=guide, **settings)
    entry = {**entry, "tolerance": run.get("tolerance", entry["tolerance"])}
    # a restart goes up, and down again to where it was
    lowest = np.unique(np.minimum.accumulate(sample.solver(net, None, **settings).levels))[::-1]
    np.testing.assert_allclose(lowest[: len(arrays[f"{name}/grid"])], arrays[f"{name}/grid"], rtol=1e-9)
    assert len(net.sigmas) == run["evaluations"] == sample.solver(net, None, **settings).evaluations
    rtol = 1e-6 if run["options"].get("float32_times") else 1e-9
    np.testing.assert_allclose(net.sigmas, arrays[f"{name}/sigmas"], rtol=rtol)
    if guide is not None:
        steps = sample.solver(net, None, **settings)
        expected = [] if guide.weight == 1 else arrays.get(f"{name}/reference_sigmas", net.sigmas)
        np.testing.assert_allclose(reference.sigmas, expected, rtol=1e-9)
        assert steps.guided_evaluations(guide) == len(expected)
    g.check(entry, f"{name}/x", torch.stack(net.x), arrays[f"{name}/x"])
    if f"{name}/noise" in arrays:
        # diffusers draws in a step to 0, too, without a use
        drawn = arrays[f"{name}/noise"][: -1 if run["package"] == "diffusers" and run["ends"] == "zero" else None]
        np.testing.assert_allclose(torch.stack(noise), drawn, rtol=1e-6, atol=1e-6)
    else:
        assert not noise
    g.check(entry, f"{name}/out", out, arrays[f"{name}/out"])


@pytest.mark.parametrize(("entry", "run"), list(runs(lambda id: id == "solvers/schedules")))
def test_levels(entry, run):
    kind = GRIDS.get(run.get("type"), run["name"].removeprefix("k-"))
    n, limits = run.get("levels") or run["n"], (run.get("sigma_min"), run.get("sigma_max"))
    if kind == "vp":
        clock = levels.schedule.make_schedule("vp", 19.9, 0.1)
        limits = clock.sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
    rho = [run["rho"]] if run.get("rho") and levels.has_rho(kind) else []
    found = levels.LEVELS[kind](n, *limits, *rho).tolist()
    g.check(entry, f"{run['name']}/grid", np.array([*found, *[0.0] * run["append_zero"]]))


@pytest.mark.parametrize(("entry", "run"), list(runs(lambda id: id == "solvers/optimised")))
def test_optimised_levels(entry, run):
    """The bound itself, and a minimum as low as the stored one: there are many, and levels tell nothing."""
    arrays, name, settings = g.arrays(entry), run["name"], (run["power"], run["truncate"])
    found = [_optimised.error_bound(probe, *settings) for probe in arrays[f"{name}/probe_lambdas"]]
    np.testing.assert_allclose(found, arrays[f"{name}/probe_objective"], rtol=1e-9)
    grid = optimised_levels(run["steps"], run["sigma_min"], run["sigma_max"], *settings)
    assert [grid[0], grid[-1]] == [run["sigma_max"], run["sigma_min"]]
    gaps = -np.diff(np.log(grid))
    assert gaps.min() > 0.333 * gaps.mean()
    assert _optimised.error_bound(-np.log(grid), *settings) <= 1.001 * run["objective"]
    if run["steps"] <= 7:  # one minimum
        np.testing.assert_allclose(grid, arrays[f"{name}/grid"], rtol=0.01)


@pytest.mark.parametrize(("entry", "run"), list(runs(lambda id: id == "solvers/search")))
def test_searched_levels(entry, run):
    arrays, name = g.arrays(entry), run["name"]
    net, T = analytic(arrays, run["denoiser"]), run["teacher_levels"]
    latents = torch.from_numpy(arrays[f"{name}/latents"])
    labels = [None] * len(latents)
    if net.label_dim:
        labels = torch.eye(net.label_dim)[torch.from_numpy(arrays[f"{name}/classes"])]
    teacher = {"solver": run["teacher"], "num_steps": T - 1, "ends": "sigma_min", "rho": run["rho"]}
    teacher["order"] = run["teacher_order"]
    costs = []
    for z, rows in zip(latents, labels, strict=True):
        levels, states, slopes = _gits.trajectories(net, z, rows, **teacher)
        costs.append(_gits.jump_costs(levels, states, slopes, run["metric"]))
    g.check(entry, f"{name}/grid", np.array(levels), arrays[f"{name}/grid"])
    g.check(entry, f"{name}/cost", sum(costs) / len(costs), arrays[f"{name}/cost"])
    for n in run["levels_in_lists"]:
        stored = torch.from_numpy(arrays[f"{name}/cost"])
        chosen = _gits.cheapest_jumps(stored, n - 1, run["coeff"])
        assert chosen == arrays[f"{name}/chosen_{n}"].tolist()
    settings = {**teacher, "teacher_levels": T, "metric": run["metric"], "discount": run["coeff"], "steps": 6}
    del settings["num_steps"]
    rows = None if labels[0] is None else labels.flatten(0, 1)
    found = gits(net, latents.flatten(0, 1), rows, batch=run["batch"], **settings)
    g.check(entry, f"{name}/levels_7", np.array(found), arrays[f"{name}/levels_7"])
