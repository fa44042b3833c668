"""The search for a sampler: fitted ones, held-out seeds, order of cost, searches that were stopped."""

import json
import shutil

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.evaluation import tuning
from edm_fast.evaluation.accuracy import draw, error_levels
from edm_fast.evaluation.tuning import Errors, Measured, Search, Truth, Wanted, _fit, _trials
from edm_fast.evaluation.tuning._fit import Fits
from edm_fast.evaluation.tuning._search import by_cost
from edm_fast.sampling import load_sampler, sample, save_sampler
from edm_fast.sampling.images import read_png
from edm_fast.sampling.solvers import _gits
from helpers.tiny_networks import tiny

NET = tiny(img_channels=1, label_dim=3)
COSTS = {"stored": 1.0}
STEPS = 16
BOUND = 4.5


def patched(patch, folder, trajectories):
    """A cache folder and a teacher of few steps; one improvement is enough to see that it is one."""
    patch.setenv("EDM_FAST_CACHE_DIR", str(folder))
    patch.setattr(_fit, "trajectories", trajectories)
    patch.setattr(_fit, "IMPROVEMENTS", 1)


@pytest.fixture(scope="module")
def trajectories():
    """The teacher's; the same for all tests of these seeds."""
    found = {}

    def trajectories(net, latents, labels, **settings):
        key = latents.double().sum().item()
        if key not in found:
            found[key] = _gits.trajectories(net, latents, labels, **{**settings, "num_steps": 30})
        return found[key]

    return trajectories


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trajectories):
    """The cache folder after a search."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patched(patch, folder, trajectories)
        search(Truth(NET, STEPS))
    return folder


@pytest.fixture
def truth(tmp_path, monkeypatch, finished, trajectories):
    """As the search has left it: what it has measured need not be measured again."""
    patched(monkeypatch, tmp_path / "cache", trajectories)
    shutil.copytree(finished, tmp_path / "cache")
    return Truth(NET, STEPS)


def task(**changes):
    settings = {
        "max_error": BOUND,
        "evaluations": [3, 4, 5],
        "seeds": range(16),
        "solvers": ["fitted"],
        "statistic": "mean",
    }
    return Wanted(**{**settings, "precisions": ["stored"], **changes})


def search(truth, **changes):
    wanted = task(**changes)
    measured = Measured(truth, {"stored": NET})
    return wanted, measured, list(Search(wanted, measured).run(COSTS))


def test_the_truth_is_computed_once(truth, monkeypatch):
    ticks = []
    assert truth.cost([55, 56, 55]) == 2 * STEPS
    images = truth.images([55, 56], ticks.append)
    assert sum(ticks) == 2 * STEPS
    assert torch.allclose(images.double(), draw(NET, sample, [55, 56], solver="ipndm", num_steps=STEPS), atol=1e-4)
    again = Truth(NET, STEPS)
    assert again.missing([55, 56, 57]) == [57] and torch.equal(again.images([56, 55]), images.flip(0))
    assert Truth(NET, STEPS + 1).missing([55]) == [55] == Truth(tiny(img_channels=1, label_dim=4), STEPS).missing([55])
    truth.path.write_bytes(truth.path.read_bytes()[:-30])
    assert Truth(NET, STEPS).missing([55]) == [55], "a damaged file is as good as none"
    assert 0 < truth.apart([5, 6, 7, 8, 9]) < 9 and truth.finer().missing([5, 9]) == [9]


def test_fitted_weights_come_nearer_on_other_seeds(truth):
    fits = Fits(NET, range(8))
    assert error_levels(fits.truth_of([3, 2]), truth.images([3, 2])).max() < 9
    levels = fits.levels(5, 1.05)
    fitted = fits.fit(levels)
    assert fitted.levels == fits.sigmas(levels) and [len(w) for w in fitted.weights] == [1, 2, 3, 4, 4]
    seeds = range(8, 16)
    error = {
        name: error_levels(draw(NET, sample, seeds, levels=fitted.levels, **settings), truth.images(seeds)).mean()
        for name, settings in {
            "fitted": {"solver": "listed", "weights": fitted.weights},
            "ipndm": {"solver": "ipndm"},
            "heun": {"solver": "heun"},
        }.items()
    }
    assert error["fitted"] < 0.8 * error["ipndm"] and error["fitted"] < error["heun"]
    best, rough = fits.best(4), fits.best(4, worth=0.0)
    assert best.error < 0.9 * rough.error
    images = draw(NET, sample, range(8), solver="listed", levels=best.levels, weights=best.weights)
    assert best.error == pytest.approx(error_levels(images, fits.truth).mean().item(), rel=1e-3)


def test_derivatives_by_levels_and_weights():
    """The replayed part of a run changes nothing."""
    fits = Fits(NET, range(2))
    fitted = fits.fit(fits.levels(3, 1.05))
    x, known = fits.run(fitted)
    assert torch.equal(fits.run(fitted, known)[0], x)
    J = fits.derivatives(fitted, x, known)
    assert J.shape == (2, 64, 2 + 1 + 2 + 3)
    for place, moved in ((1, fitted.moved({2: 0.02}, {})), (5, fitted.moved({}, {(2, 0): 0.02}))):
        change = (fits.run(moved)[0].clamp(-1, 1) - x.clamp(-1, 1)).flatten(1) * 127.5
        assert (change / 0.02 - J[..., place]).norm() < 0.2 * J[..., place].norm()


def test_the_cheapest_that_keeps_the_bound(truth):
    wanted, measured, found = search(truth)
    assert [each.trial.evaluations for each in found] == sorted(each.trial.evaluations for each in found)
    *others, last = found
    assert last.kept and not any(each.kept for each in others) and others
    assert last.held_out.mean + 2 * last.held_out.se <= BOUND
    images = draw(NET, sample, wanted.held_out, **last.trial.settings)
    assert last.held_out == pytest.approx(Errors.of(error_levels(images, truth.images(wanted.held_out)).tolist()))
    assert not set(wanted.searched) & set(wanted.held_out) and len(wanted.searched) == 8


def test_held_out_seeds_decide(truth, monkeypatch):
    errors = Measured.errors

    def worse(self, trial, precision, seeds):
        return [error + 5 * (seed < 8) for seed, error in zip(seeds, errors(self, trial, precision, seeds))]

    monkeypatch.setattr(Measured, "errors", worse)
    _, _, found = search(truth)
    assert not any(each.kept for each in found) and any(each.searched.mean < BOUND for each in found)
    assert all((each.held_out is not None) == (each.searched.mean <= BOUND) for each in found)


def test_the_margin():
    errors = [0.5, 1.0, 1.5]
    found = Errors.of(errors)
    assert found == pytest.approx((1.0, 0.5 / 3**0.5, 1.0, 1.45, 1.5))
    assert tuning.upper(errors, "mean") == pytest.approx(1.0 + 2 * found.se)
    # of 64, the median of all is below the 40th and the 95th percentile nowhere in sight; of 400 it is below the 389th
    assert tuning.upper(range(1, 65), "median") == 40 and tuning.upper(range(1, 65), "p95") == float("inf")
    assert tuning.upper(range(1, 401), "p95") == 389


def test_fixed_solvers_are_thinned_out(truth, monkeypatch):
    monkeypatch.delitem(_trials.GRIDS, "optimised")  # takes seconds
    wanted, measured, found = search(truth, solvers=["euler", "ipndm"], max_error=30.0, evaluations=[4])
    assert len(found) == 1 and found[0].kept and found[0].trial.settings["solver"] != "euler"
    best = found[0].searched.mean
    seen = measured._stored["errors"].values()
    assert len(seen) > 15 and max(map(len, seen)) == 16 and min(map(len, seen)) < 4
    assert best <= min(sum(each.values()) / 8 for each in seen if len(each) == 8) + 1e-9


def test_a_search_that_was_stopped_goes_on(truth, monkeypatch):
    monkeypatch.setattr(Measured, "draw", None)
    monkeypatch.setattr(Fits, "fit", None)
    _, measured, found = search(truth)
    assert found[-1].kept and len(measured) > 0
    # what another version has measured is measured anew
    before = measured.path.read_text()
    stale = json.loads(before)
    stale["versions"]["torch"] = "1.0"
    for text in (json.dumps(stale), before[:-9], "[]"):
        measured.path.write_text(text)
        with pytest.raises(TypeError):
            search(truth)


def test_by_cost():
    pairs = by_cost([4, 5, 6], {"exact": 2.0, "fp32": 1.0, "slow": 1.5, "bf16": 0.7})
    costs = {"exact": 2.0, "fp32": 1.0, "bf16": 0.7}
    assert pairs == sorted(pairs, key=lambda pair: pair[0] * costs[pair[1]]) and len(pairs) == 9
    assert pairs[0] == (4, "bf16") and pairs.index((5, "bf16")) < pairs.index((4, "fp32"))


def test_the_file_and_the_picture(truth, tmp_path):
    wanted, measured, found = search(truth)
    tuned = tuning.tuned_sampler(wanted, found[-1], truth, 0.01, "tiny")
    save_sampler(tmp_path / "a.json", tuned)
    assert load_sampler(tmp_path / "a.json", NET) == tuned
    assert tuned.error["seeds"] == "0-7" and tuned.error["images"] == 8 and tuned.precision == "stored"
    assert tuned.error["mean"] == found[-1].held_out.mean and tuned.truth["num_steps"] == STEPS
    assert measured.of_file(tuned, wanted.held_out) == measured.errors(found[-1].trial, "stored", wanted.held_out)
    tuning.save_pairs(tmp_path / "a.png", wanted, found[-1], measured)
    picture = read_png(tmp_path / "a.png").astype(int)
    ours, true, difference = picture[:8, :8], picture[:8, 8:16], picture[:8, 16:24]
    inner = (difference > 0) & (difference < 255)
    assert inner.any() and abs(difference - 128 - 16 * (ours - true))[inner].max() <= 32


def test_bad_tasks():
    for changes, line in (
        ({"seeds": [1, 2, 3, 3]}, "3 seeds; expected at least 4"),
        ({"solvers": ["ipdnm"]}, "near names"),
    ):
        with pytest.raises(UserError, match=line):
            task(**changes)
