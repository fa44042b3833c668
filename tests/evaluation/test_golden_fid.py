"""Frechet distances, and statistics of images by way of files, dataset, loader and a stand-in detector."""

import numpy as np
import PIL.Image
import pytest

from edm_fast.evaluation import fid
from helpers import golden_cases as g
from helpers import tiny_detector

RUNS = [(entry, run["name"], run) for entry in g.entries("fid") for run in entry["config"]["runs"]]
IDS = [f"{entry['id']}-{name}" for entry, name, _ in RUNS]


def has(entry, name):
    return name in entry["arrays"]


def near(got, want, rtol=0.0, atol=0.0):
    assert abs(float(got) - float(want)) <= rtol * abs(float(want)) + atol, f"{got} is not {want}"


@pytest.mark.parametrize("entry, name, run", RUNS, ids=IDS)
def test_golden_run(entry, name, run, tmp_path):
    arrays = g.arrays(entry)
    assert has(entry, f"{name}/fid") or has(entry, f"{name}/images")
    if has(entry, f"{name}/fid"):
        check_distance(
            entry, {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(name + "/")}, run
        )
    if has(entry, f"{name}/images"):
        images = arrays[f"{name}/images"]
        for index, image in enumerate(images):  # (C, H, W)
            PIL.Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                tmp_path / f"{index:06d}.png"
            )
        tiny_detector.save(tmp_path / "detector.pt", proj=arrays["proj"])
        features = fid.load_detector(tmp_path / "detector.pt")
        dataset = fid.open_images(tmp_path, run.get("num"), run.get("seed", 0))
        mu, sigma = fid.compute_statistics(dataset, features, batch=4, workers=0)
        g.check(entry, f"{name}/mu", mu)
        g.check(entry, f"{name}/sigma", sigma)


def check_distance(entry, pair, run):
    limits = entry["tolerance"]
    got = fid.frechet_distance(pair["mu"], pair["sigma"], pair["mu_ref"], pair["sigma_ref"])
    if run.get("full_rank", True):
        near(got, pair["fid"], limits.get("rtol", 0), limits.get("atol", 0))
    else:
        near(got, pair["fid"], limits["rank_deficient_rtol"], limits.get("atol", 0))
    if "fid_self" in pair:
        near(
            fid.frechet_distance(pair["mu"], pair["sigma"], pair["mu"], pair["sigma"]),
            pair["fid_self"],
            0,
            limits["fid_self_atol"],
        )


@pytest.mark.parametrize("entry", g.entries("fid"), ids=g.entry_id)
def test_golden_statistics_file(entry, tmp_path):
    """The .npz keeps every bit."""
    arrays = g.arrays(entry)
    for key in [key for key in arrays if key.endswith("/sigma")]:
        mu, sigma = arrays[key[: -len("sigma")] + "mu"], arrays[key]
        fid.save_statistics(tmp_path / "s.npz", mu, sigma)
        back = fid.load_statistics(tmp_path / "s.npz")
        np.testing.assert_array_equal(back[0], mu)
        np.testing.assert_array_equal(back[1], sigma)
