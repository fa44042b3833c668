"""Reference statistics as EDM2's metrics write them, and the distance to them."""

import numpy as np
import PIL.Image
import pytest
import torch

from edm_fast.checkpoint import load_values, save
from edm_fast.errors import UserError
from edm_fast.evaluation import fid
from helpers import golden_cases as g
from helpers.tiny_networks import tiny


@pytest.mark.parametrize("entry", g.edm2("metrics"), ids=g.entry_id)
def test_golden_edm2_frechet(entry, tmp_path):
    arrays, config = g.arrays(entry), entry["config"]
    path = g.path(entry, config["file"])
    stored = load_values(path)
    assert sorted(stored) == config["keys"] and stored["num_images"] == config["num_images"] == len(arrays["images_b"])
    mu, sigma = fid.load_statistics(path)
    g.check(entry, "mu_b", mu)
    g.check(entry, "sigma_b", sigma)
    for i, image in enumerate(arrays["images_a"]):
        PIL.Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i:03d}.png")

    def features(images):
        assert images.dtype == torch.uint8
        flat = (images.numpy() / 255).reshape(len(images), -1)
        return torch.from_numpy((flat @ arrays["proj"]).astype(np.float32))

    dataset = fid.open_images(str(tmp_path), len(arrays["images_a"]), 0, print)
    mu_a, sigma_a = fid.compute_statistics(dataset, features, batch=4, workers=0)
    g.check(entry, "mu_a", mu_a)
    g.check(entry, "sigma_a", sigma_a)
    for value in config["value"].values():
        g.check(entry, "value", np.float64(fid.frechet_distance(mu_a, sigma_a, mu, sigma)), np.float64(value))


def test_other_pickles_are_no_statistics(tmp_path):
    save(tiny(), tmp_path / "net.pkl")
    with pytest.raises(UserError):
        fid.load_statistics(tmp_path / "net.pkl")
