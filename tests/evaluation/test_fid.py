"""Statistics, distances, their files, and detectors."""

import os
import pickle

import numpy as np
import PIL.Image
import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.evaluation import fid
from helpers import tiny_detector


def save_images(folder, count, size=8, channels=3, seed=0):
    folder.mkdir(exist_ok=True)
    rng = np.random.RandomState(seed)
    images = [
        rng.randint(0, 256, (size, size, 3) if channels == 3 else (size, size)).astype(np.uint8) for _ in range(count)
    ]
    for i, image in enumerate(images):
        PIL.Image.fromarray(image).save(folder / f"{i:06d}.png")
    return images


def pixels(images):
    return images.flatten(1).to(torch.float64)[:, :7]


def test_statistics_equal_numpys(tmp_path):
    images = save_images(tmp_path / "a", 9)
    mu, sigma = fid.compute_statistics(fid.open_images(tmp_path / "a"), pixels, batch=2, workers=0)
    rows = np.stack([image.transpose(2, 0, 1).reshape(-1)[:7] for image in images]).astype(np.float64)
    np.testing.assert_allclose(mu, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(rows.T), rtol=1e-9, atol=1e-9)


def test_workers_give_the_same(tmp_path):
    save_images(tmp_path / "a", 6)
    dataset = fid.open_images(tmp_path / "a")
    one = fid.compute_statistics(dataset, pixels, batch=2, workers=0)
    more = fid.compute_statistics(dataset, pixels, batch=2, workers=2)
    for a, b in zip(one, more, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_channel_is_repeated(tmp_path):
    save_images(tmp_path / "a", 2, channels=1)
    (batch,) = fid.image_batches(fid.open_images(tmp_path / "a"), workers=0)
    assert batch.shape == (2, 3, 8, 8) and batch.dtype == torch.uint8
    assert torch.equal(batch[:, 0], batch[:, 2])


def test_subset_is_the_published_one(tmp_path):
    images = save_images(tmp_path / "a", 11)
    order = np.arange(11)
    np.random.RandomState((2**31 + 3) % 2**31).shuffle(order)
    (batch,) = fid.image_batches(fid.open_images(tmp_path / "a", 5, seed=2**31 + 3), workers=0)
    want = np.stack([images[i].transpose(2, 0, 1) for i in np.sort(order[:5])])
    np.testing.assert_array_equal(batch.numpy(), want)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_one_line(tmp_path, workers):
    save_images(tmp_path / "a", 4)
    (tmp_path / "a" / "000002.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="000002.png") as caught:
        fid.compute_statistics(fid.open_images(tmp_path / "a"), pixels, workers=workers)
    assert "\n" not in str(caught.value)


def test_too_few_images_and_odd_channels(tmp_path):
    save_images(tmp_path / "a", 3)
    with pytest.raises(UserError, match="holds 3 images; expected at least 4"):
        fid.open_images(tmp_path / "a", 4)
    save_images(tmp_path / "b", 1)
    with pytest.raises(UserError, match="holds 1 image; expected at least 2"):
        fid.open_images(tmp_path / "b")
    for i in range(2):
        (tmp_path / "c").mkdir(exist_ok=True)
        PIL.Image.new("RGBA", (8, 8)).save(tmp_path / "c" / f"{i}.png")
    with pytest.raises(UserError, match="4 channels"):
        fid.open_images(tmp_path / "c")
    with pytest.raises(UserError, match="statistics of 1 images are undefined"):
        sums = fid.FeatureSums(2)
        sums.add(torch.zeros(1, 2))
        sums.statistics()


def test_distance_of_known_gaussians():
    # diagonal covariances commute: FID = |mu - nu|^2 + sum (a - b)^2 for standard deviations a, b
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    mu, nu = np.array([0.0, 1.0, -1.0]), np.array([1.0, 1.0, 1.0])
    got = fid.frechet_distance(mu, np.diag(a**2), nu, np.diag(b**2))
    assert got == pytest.approx(5 + np.square(a - b).sum(), rel=1e-12)
    with pytest.raises(UserError, match="3 features do not compare with ones of 2"):
        fid.frechet_distance(mu, np.diag(a), mu[:2], np.diag(a[:2]))


def test_distance_says_nothing_for_singular_matrices(capsys, recwarn):
    sigma = np.diag([1.0, 0.0, 0.0])
    assert np.isfinite(fid.frechet_distance(np.zeros(3), sigma, np.ones(3), sigma))
    assert capsys.readouterr().out == "" and not recwarn.list


def test_statistics_file_has_the_published_keys_and_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "s.npz"
    fid.save_statistics(path, np.zeros(2), np.eye(2))
    with np.load(path) as npz:
        assert {key: (npz[key].shape, npz[key].dtype.name) for key in npz.files} == {
            "mu": ((2,), "float64"),
            "sigma": ((2, 2), "float64"),
        }
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        fid.save_statistics(path, np.ones(2), np.eye(2))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("created-by-the-pickle",)


def test_bad_statistics_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("keys.npz", mu=np.zeros(2))
    np.savez("shape.npz", mu=np.zeros(2), sigma=np.eye(3))
    np.savez("nan.npz", mu=np.zeros(2), sigma=np.eye(2) * np.nan)
    np.savez("object.npz", mu=np.array([Evil()], dtype=object), sigma=np.eye(2))
    np.savez("text.npz", mu=np.array(["a"]), sigma=np.eye(1))
    np.save("array.npy", np.zeros(2))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:99])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Evil()))
    for path in [*tmp_path.iterdir(), "none.npz"]:
        with pytest.raises(UserError) as caught:
            fid.load_statistics(path)
        assert "\n" not in str(caught.value)
        assert "allow_pickle" not in str(caught.value) or path.name == "object.npz", "NumPy's words for any other file"
    for data, words in [(b"<html>", "a text file"), (b"", "empty"), (pickle.dumps(0), "a pickle")]:
        (tmp_path / "x.npz").write_bytes(data)
        with pytest.raises(UserError, match=f"x.npz: it is {words}; expected an .npz file"):
            fid.load_statistics("x.npz")
    os.mkfifo("pipe.npz")
    for path in ("pipe.npz", ".", "none.npz"):
        with pytest.raises(UserError, match=f"no file {path}; expected reference statistics"):
            fid.load_statistics(path)
    assert not (tmp_path / "created-by-the-pickle").exists()


class Module(torch.nn.Module):
    """Does one of the things a detector should not do."""

    def __init__(self, kind: int):
        super().__init__()
        self.kind = kind

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if self.kind == 0:
            return images
        if self.kind == 1:
            return images.flatten(1)[:0]
        return images.reshape(-1, 7)


def test_detector(tmp_path):
    proj = tiny_detector.save(tmp_path / "d.pt", dim=5)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    features = fid.load_detector(tmp_path / "d.pt")
    np.testing.assert_allclose(features(images), images.flatten(1).numpy() / 255 @ proj, rtol=1e-9)
    assert fid.feature_dim(features, 8, 8) == 5
    with pytest.raises(UserError, match=r"failed on images \(1, 3, 9, 9\)") as caught:
        fid.feature_dim(features, 9, 9)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_detectors(tmp_path):
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps({}))
    with open(tmp_path / "zip.pt", "wb") as file:
        np.savez(file, a=np.zeros(2))
    for name, message in [
        ("none.pt", "no file"),
        ("pickle.pkl", "pickles are not loaded"),
        ("zip.pt", "as TorchScript"),
    ]:
        with pytest.raises(UserError, match=message):
            fid.load_detector(tmp_path / name)
    for kind in range(3):
        torch.jit.script(Module(kind)).save(str(tmp_path / "m.pt"))
        with pytest.raises(UserError, match="does not return features|failed on images"):
            fid.feature_dim(fid.load_detector(tmp_path / "m.pt"), 8, 8)
