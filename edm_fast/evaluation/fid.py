"""Frechet Inception distance (Heusel et al. 2017), with the protocol of Karras et al. 2022.

Features f (n, D) of n uint8 RGB images, in float64: S1 = sum f, S2 = sum f f^T, summed over batches and ranks,
    mu = S1 / n,  Sigma = (S2 - n mu mu^T) / (n - 1),
    FID = Re(|mu - mu_r|^2 + tr(Sigma + Sigma_r - 2 (Sigma Sigma_r)^(1/2))).
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
import torch.distributed as dist

from edm_fast import distributed
from edm_fast.checkpoint import load_values
from edm_fast.data.dataset import ImageFolderDataset
from edm_fast.errors import UserError, UserOSError, count
from edm_fast.files import KINDS, atomic_write, kind_of, user_path, utf8_name
from edm_fast.sampling.seeds import deal_seeds

Features = Callable[[torch.Tensor], torch.Tensor]  # (N, 3, H, W) uint8 -> (N, D)
Statistics = tuple[np.ndarray, np.ndarray]  # mu (D,), sigma (D, D), float64
DETECTOR_FILE = "inception-2015-12-05.pt"


class FeatureSums:
    """Running S1 (D,), S2 (D, D) and n, in float64 on `device`."""

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.s1 = torch.zeros([dim], dtype=torch.float64, device=device)
        self.s2 = torch.zeros([dim, dim], dtype=torch.float64, device=device)
        self.count = torch.zeros([], dtype=torch.float64, device=device)

    def add(self, features: torch.Tensor) -> None:
        """Add a batch of features (N, D)."""
        features = features.to(torch.float64)
        self.s1 += features.sum(0)
        self.s2 += features.T @ features
        self.count += len(features)

    def reduce(self) -> None:
        """Sum over all ranks."""
        if distributed.world_size() > 1:
            for tensor in (self.s1, self.s2, self.count):
                dist.all_reduce(tensor)

    def merge(self, other: FeatureSums) -> None:
        """Add the sums of other images."""
        self.s1 += other.s1.to(self.s1.device)
        self.s2 += other.s2.to(self.s2.device)
        self.count += other.count.to(self.count.device)

    def statistics(self) -> Statistics:
        n = self.count
        if n < 2:
            raise UserError(f"statistics of {int(n)} images are undefined; expected at least 2")
        mu = self.s1 / n
        sigma = (self.s2 - torch.outer(mu, mu) * n) / (n - 1)
        return mu.cpu().numpy(), sigma.cpu().numpy()


class _Quiet(torch.utils.data.Dataset):
    """Images only, an unreadable one as its error text: a loader's worker would add its traceback to an exception."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return self.dataset[index][0]
        except (UserError, OSError) as error:
            return str(error)


def _collate(items: list[np.ndarray | str]) -> torch.Tensor | str:
    for item in items:
        if isinstance(item, str):
            return item
    return torch.from_numpy(np.stack(items))  # type: ignore[arg-type]


def open_images(
    path: str | os.PathLike[str],
    num: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> ImageFolderDataset:
    """The images of a folder or zip, by name; `num` of them at random (sorted) if given. Fewer are an error.

    The header of each is looked at, so that an image of another size or kind stops a run before it begins;
    report(line) is told what was found.
    """
    dataset = ImageFolderDataset(path=str(path), max_size=num, random_seed=seed)
    wanted = 2 if num is None else num
    if len(dataset) < wanted:
        raise UserError(f"{path} holds {count(len(dataset), 'image')}; expected at least {wanted}")
    if dataset.num_channels not in (1, 3):
        raise UserError(f"images of {path} have {dataset.num_channels} channels; expected 1 (gray) or 3 (RGB)")
    line = dataset.survey()
    report(f"images: {path}: {line}" + ("; gray is repeated to RGB" if dataset.num_channels == 1 else ""))
    return dataset


def image_batches(
    dataset: ImageFolderDataset, batch: int = 64, workers: int = 3, shard: tuple[int, int] = (0, 1)
) -> Iterator[torch.Tensor]:
    """This rank's batches (N, 3, H, W) uint8, dealt as seeds are; gray images are repeated to three channels.

    shard: (I, N) for the part I of N of them.
    """
    world = distributed.world_size()
    parts = deal_seeds(range(len(dataset)), batch, world)[distributed.rank() :: world][shard[0] :: shard[1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # three workers are the protocol, also on two cores
        loader = iter(
            torch.utils.data.DataLoader(
                _Quiet(dataset),
                batch_sampler=[part for part in parts if part],
                num_workers=workers,
                prefetch_factor=2 if workers else None,
                collate_fn=_collate,
            )
        )
    try:
        for images in loader:
            if isinstance(images, str):
                raise UserOSError(images)
            yield images.repeat(1, 3, 1, 1) if images.shape[1] == 1 else images
    finally:
        del loader  # ends the workers now; after an error its traceback would keep them


def compute_statistics(dataset: ImageFolderDataset, features: Features, *args: Any, **kwargs: Any) -> Statistics:
    """mu (D,) and sigma (D, D) of the images' features; arguments as those of compute_sums."""
    return compute_sums(dataset, features, *args, **kwargs).statistics()


def compute_sums(
    dataset: ImageFolderDataset,
    features: Features,
    batch: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 3,
    progress: Callable[[Iterable[torch.Tensor]], Iterable[torch.Tensor]] = lambda batches: batches,
    shard: tuple[int, int] = (0, 1),
) -> FeatureSums:
    """Sums of the images' features, the same on every rank. progress(batches) may wrap the loop."""
    height, width = dataset.image_shape[1:]
    sums = FeatureSums(feature_dim(features, height, width, device), device)
    for images in progress(image_batches(dataset, batch, workers, shard)):
        with torch.no_grad():
            sums.add(features(images.to(device)))
    sums.reduce()
    return sums


def feature_dim(features: Features, height: int, width: int, device: torch.device | str = "cpu") -> int:
    """D, from one black image."""
    with torch.no_grad():
        return features(torch.zeros([1, 3, height, width], dtype=torch.uint8, device=device)).shape[1]


def frechet_distance(mu: np.ndarray, sigma: np.ndarray, mu_ref: np.ndarray, sigma_ref: np.ndarray) -> float:
    """Frechet distance of two Gaussians: the principal root of sigma @ sigma_ref by scipy's sqrtm, no jitter."""
    if mu.shape != mu_ref.shape or sigma.shape != sigma_ref.shape:
        raise UserError(
            f"statistics of {mu.size} features do not compare with ones of {mu_ref.size}; expected equal counts"
        )
    # a singular product, as of fewer images than features, makes older scipy print and newer scipy warn
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = scipy.linalg.sqrtm(sigma @ sigma_ref)
    return float(np.real(np.square(mu - mu_ref).sum() + np.trace(sigma + sigma_ref - 2 * root)))


def save_statistics(path: str | os.PathLike[str], mu: np.ndarray, sigma: np.ndarray) -> None:
    """Write `mu` and `sigma` to an uncompressed .npz, whole or not at all; missing folders are made."""
    with atomic_write(path, kind="npz") as file:
        np.savez(file, mu=np.asarray(mu, np.float64), sigma=np.asarray(sigma, np.float64))


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """`mu` (D,) and `sigma` (D, D) of an .npz file, or those under "fid" in the .pkl that EDM2's metrics write."""
    path = user_path(path)
    if path.endswith(".pkl") and os.path.isfile(path) and kind_of(path) == "pickle":
        stored = load_values(path)
        found = stored.get("fid") if isinstance(stored, dict) else None
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), torch.Tensor) for name in ("mu", "sigma")
        ):
            raise UserError(f'{path} has no "fid" with arrays mu and sigma; expected reference statistics')
        mu, sigma = (found[name].to(torch.float64).numpy() for name in ("mu", "sigma"))
        _check_statistics(path, mu, sigma, "mu", "sigma")
        return mu, sigma
    mu, sigma = _read_npz(path, "reference statistics", "mu", "sigma")
    return mu, sigma


def _read_npz(path: str | os.PathLike[str], what: str, *names: str) -> list[np.ndarray]:
    """The arrays of these names: the first two (D,) and (D, D) of finite numbers, others as they are."""
    path = user_path(path)
    if not os.path.isfile(path):  # a pipe would wait for ever
        raise UserOSError(f"no file {path}; expected {what} (.npz)")
    try:
        found = kind_of(path)
        if found != "npz":
            raise ValueError(f"it is {KINDS[found]}" if found else "it is empty")
        with np.load(path, allow_pickle=False) as npz:
            first, second = (np.asarray(npz[name], np.float64) for name in names[:2])
            others = [np.asarray(npz[name]) for name in names[2:]]
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        arrays = " and ".join(names)
        raise UserError(f"cannot read {path}: {text}; expected an .npz file with arrays {arrays}") from None
    _check_statistics(path, first, second, *names[:2])
    return [first, second, *others]


def _check_statistics(path: str, first: np.ndarray, second: np.ndarray, *names: str) -> None:
    if first.ndim != 1 or second.shape != (first.size, first.size):
        raise UserError(f"{path} has {names[0]} {first.shape} and {names[1]} {second.shape}; expected (D,) and (D, D)")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError(f"{path} holds values that are not finite numbers")


def save_sums(path: str | os.PathLike[str], sums: FeatureSums, detector: str) -> None:
    """Write sums of features to an .npz file, whole or not at all. detector: the digest of what gave the features."""
    with atomic_write(path, kind="npz") as file:
        np.savez(file, s1=sums.s1.cpu(), s2=sums.s2.cpu(), count=sums.count.cpu(), detector=np.array(detector))


def load_sums(path: str | os.PathLike[str]) -> tuple[FeatureSums, str]:
    """What save_sums wrote: the sums, and the digest of the detector."""
    s1, s2, number, detector = _read_npz(path, "sums of edm-fast fid sums", "s1", "s2", "count", "detector")
    if number.shape != () or not float(number).is_integer() or number < 0:
        raise UserError(f"{path} holds no number of images; expected sums of edm-fast fid sums")
    sums = FeatureSums(s1.size)
    sums.s1, sums.s2 = torch.from_numpy(s1), torch.from_numpy(s2)
    sums.count = torch.tensor(float(number), dtype=torch.float64)
    return sums, str(detector)


def load_detector(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Features:
    """The feature extractor in a TorchScript archive, as a function of uint8 images.

    It is called as module(images, return_features=True). A TorchScript archive is a program: load only one from a
    place you trust. Pickles are not loaded.
    """
    path = Path(user_path(path))
    if not path.is_file():
        raise UserOSError(f"no file {path}; expected a TorchScript archive of the Inception detector")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not a TorchScript archive (a zip file); pickles are not loaded: expected the .pt edition "
            f"of the detector, published as {DETECTOR_FILE}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with utf8_name(path) as name:
                module = torch.jit.load(name, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot load {path} as TorchScript: {_first_line(error)}") from None

    def features(images: torch.Tensor) -> torch.Tensor:
        try:
            result: Any = module(images, return_features=True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise UserError("the detector ran out of memory; expected to fit with a smaller --batch") from None
            raise UserError(
                f"the detector {path} failed on images {tuple(images.shape)}: {_first_line(error)}"
            ) from None
        if not isinstance(result, torch.Tensor) or result.ndim != 2 or len(result) != len(images):
            raise UserError(f"the detector {path} does not return features; expected a tensor (N, D)")
        return result

    return features


def _first_line(error: BaseException) -> str:
    """The last non-empty line of TorchScript's long messages says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
