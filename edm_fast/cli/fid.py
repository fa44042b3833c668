"""edm-fast fid: the Frechet Inception distance of an image set to reference statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import click
import torch
import tqdm

from edm_fast import distributed, files
from edm_fast.cli import _options as opt
from edm_fast.cli._device import own_gpu, resolve_device
from edm_fast.cli._outputs import expect_output
from edm_fast.cli._ranks import shard_option
from edm_fast.errors import UserError, UserOSError, count
from edm_fast.evaluation import fid

T = TypeVar("T")
IMAGES_HELP = "Folder, zip or tar of images, or a folder of such archives"
DETECTOR_HELP = f"""no detector; expected --detector FILE: the TorchScript archive of the 2015 Inception-v3 network, \
published as {fid.DETECTOR_FILE} with the metrics of the StyleGAN family"""


def find_detector(path: str | None) -> str:
    """The file given, or the one in the cache folder."""
    if path is not None:
        return fetch_once(path)
    cached = files.cache_folder() / fid.DETECTOR_FILE
    if not cached.is_file():
        raise UserOSError(f"{DETECTOR_HELP}; or put it at {cached}")
    return str(cached)


def progress(batches: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    return tqdm.tqdm(batches, unit="batch", disable=distributed.rank() != 0 or not sys.stderr.isatty())


detector_option = click.option(
    "--detector",
    help="TorchScript file of the Inception detector (a program: use a trusted one)  [default: in the cache folder]",
    metavar="PATH|URL",
    type=opt.INPUT_PATH_OR_URL,
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
batch_option = click.option(
    "--batch", help="Images per batch and process", type=click.IntRange(min=1), default=64, show_default=True
)


@click.group()
def command() -> None:
    """Frechet Inception distance (FID) of images to reference statistics.

    \b
    edm-fast fid calc --images=out --ref=cifar10-32x32.npz --detector=inception-2015-12-05.pt
    edm-fast fid ref --data=cifar10-32x32.zip --dest=cifar10-32x32.npz --detector=inception-2015-12-05.pt
    torchrun --standalone --nproc_per_node=8 -m -- edm_fast fid calc ...

    (Mind the two dashes after -m: without them torchrun takes --num for an option of its own.)

    The detector is the TorchScript archive (.pt) of the 2015 Inception-v3 network, which the metrics code of the
    StyleGAN family publishes. It is not part of this package. A TorchScript file is a program: take it from a place
    you trust. Put into the cache folder, it is found without --detector.

    Published figures are the minimum of three runs on 50000 images each, seeds 0-49999, 50000-99999 and
    100000-149999. A distance of fewer images is larger, and comparable only with ones of as many.
    """


@command.command()
@click.option("--images", "image_path", help=f"{IMAGES_HELP}  [default: none]", metavar="PATH", type=opt.INPUT_PATH)
@click.option(
    "--sums",
    "sums_paths",
    help="Sums of features of more images, which fid sums has written; may be repeated  [default: none]",
    metavar="NPZ",
    type=opt.INPUT_PATH,
    multiple=True,
)
@click.option(
    "--ref", "ref_path", help="Reference statistics", metavar="NPZ|URL", type=opt.INPUT_PATH_OR_URL, required=True
)
@click.option(
    "--num", "num_expected", help="How many images", type=click.IntRange(min=2), default=50000, show_default=True
)
@click.option("--seed", help="Seed of the random choice of images", type=int, default=0, show_default=True)
@batch_option
@detector_option
@device_option
def calc(
    image_path: str | None,
    sums_paths: Sequence[str],
    ref_path: str,
    num_expected: int,
    seed: int,
    batch: int,
    detector: str | None,
    device: str,
) -> None:
    """Print the FID of images; the number is alone on the last line.

    --num counts images and those of --sums together. With --sums alone no detector is needed.
    """
    if image_path is None and not sums_paths:
        raise UserError("no images; expected --images, --sums or both")
    where = resolve_device(device)
    distributed.init(where)
    mu_ref, sigma_ref = read_fetched(ref_path, fetch_once(ref_path), fid.load_statistics)
    total, digest = added_sums(sums_paths, mu_ref.size, ref_path)
    missing = num_expected - int(total.count)
    if missing < 0 or (missing > 0 and image_path is None) or (missing == 0 and image_path is not None):
        has = "as many" if image_path is None else "more, and --images the rest"
        raise UserError(f"--sums are of {int(total.count)} images and --num is {num_expected}; expected {has}")
    dataset = None if image_path is None else fid.open_images(image_path, missing, seed, distributed.print0)
    protocol: dict[str, object] = {"sums": ", ".join(sums_paths)} if sums_paths else {}
    protocol |= {"seed": seed, "reference": ref_path}
    if dataset is None:
        print_protocol(f"sha256 {digest}", batch, where, protocol)
    else:
        origin, detector = detector, find_detector(detector)
        features = read_fetched(origin, detector, lambda path: fid.load_detector(path, where))
        height, width = dataset.image_shape[1:]
        check_features(fid.feature_dim(features, height, width, where), "the detector gives", mu_ref.size, ref_path)
        if sums_paths and files.sha256_of(detector) != digest:
            raise UserError(f"{sums_paths[0]} is of another detector than {detector}; expected one for all images")
        print_protocol(detector, batch, where, protocol)
    if num_expected <= mu_ref.size:
        distributed.print0(f"note: {num_expected} images for {mu_ref.size} features: the distance is ill-conditioned")
    if dataset is not None:
        total.merge(fid.compute_sums(dataset, features, batch, where, progress=progress))
    mu, sigma = total.statistics()
    if distributed.rank() == 0:
        click.echo(f"{fid.frechet_distance(mu, sigma, mu_ref, sigma_ref):g}")
    distributed.barrier()
    distributed.shutdown()


def check_features(dim: int, whose: str, expected: int, ref_path: str) -> None:
    if dim != expected:
        raise UserError(f"{ref_path} describes {expected} features and {whose} {dim}; expected equal counts")


def added_sums(paths: Sequence[str], dim: int, ref_path: str) -> tuple[fid.FeatureSums, str | None]:
    """(what the files of fid sums add up to, the digest of their detector). UserError if they do not go together."""
    total, digest = fid.FeatureSums(dim), None
    for number, path in enumerate(paths):
        if any(files.same_file(path, other) for other in paths[:number]):
            raise UserError(f"--sums has {path} twice; expected each once")
        sums, detector = fid.load_sums(path)
        check_features(sums.s1.numel(), f"{path} holds", dim, ref_path)
        if digest not in (None, detector):
            raise UserError(f"{path} is of another detector than {paths[0]}; expected one for all images")
        digest = detector
        total.merge(sums)
    return total, digest


@command.command()
@click.option("--images", "image_path", help=IMAGES_HELP, metavar="PATH", type=opt.INPUT_PATH, required=True)
@click.option("--dest", "dest_path", help="Sums to write", metavar="NPZ", type=opt.OUTPUT_PATH, required=True)
@shard_option("The part I = 0 to N-1 of the images")
@batch_option
@detector_option
@device_option
def sums(
    image_path: str,
    dest_path: str,
    shard: tuple[int, int, str] | None,
    batch: int,
    detector: str | None,
    device: str,
) -> None:
    """Write the sums of features that fid calc --sums adds, as of images on another machine.

    \b
    edm-fast fid sums --images=part0 --dest=0.npz --detector=inception-2015-12-05.pt
    edm-fast fid sums --images=part1 --dest=1.npz --detector=inception-2015-12-05.pt
    edm-fast fid calc --sums=0.npz --sums=1.npz --ref=cifar10-32x32.npz
    """
    where = own_gpu(resolve_device(device, group=False), device)
    expect_output(dest_path, "npz", image_path)
    dataset = fid.open_images(image_path, report=click.echo)
    origin, detector = detector, find_detector(detector)
    features = read_fetched(origin, detector, lambda path: fid.load_detector(path, where))
    print_protocol(detector, batch, where, {"sums": dest_path})
    found = fid.compute_sums(dataset, features, batch, where, progress=progress, shard=(shard or (0, 1))[:2])
    fid.save_sums(dest_path, found, files.sha256_of(detector))
    click.echo(f"{count(int(found.count), 'image')} in {dest_path}")


@command.command()
@click.option(
    "--data", "dataset_path", help="Folder or zip of images", metavar="PATH|ZIP", type=opt.INPUT_PATH, required=True
)
@click.option("--dest", "dest_path", help="Statistics to write", metavar="NPZ", type=opt.OUTPUT_PATH, required=True)
@batch_option
@detector_option
@device_option
def ref(dataset_path: str, dest_path: str, batch: int, detector: str | None, device: str) -> None:
    """Compute reference statistics of all images of a dataset."""
    where = resolve_device(device)
    distributed.init(where)
    if distributed.rank() == 0:
        expect_output(dest_path, "npz", dataset_path)
    dataset = fid.open_images(dataset_path, report=distributed.print0)
    origin, detector = detector, find_detector(detector)
    features = read_fetched(origin, detector, lambda path: fid.load_detector(path, where))
    print_protocol(detector, batch, where, {"statistics": dest_path})
    mu, sigma = fid.compute_statistics(dataset, features, batch, where, progress=progress)
    if distributed.rank() == 0:
        fid.save_statistics(dest_path, mu, sigma)
    distributed.barrier()
    distributed.shutdown()


def fetch_once(path: str) -> str:
    """A local path; a URL is downloaded by the first rank."""
    if distributed.rank() != 0:
        distributed.barrier()
    local = str(files.fetch(path))
    if distributed.rank() == 0:
        distributed.barrier()
    return local


def read_fetched(origin: str | None, local: str, read: Callable[[str], T]) -> T:
    """read(local), the copy of `origin`; an error about a download names the file it was stored in."""
    try:
        return read(local)
    except UserError as error:
        raise UserError(f"{error}{files.kept_as(origin or '', local)}") from None


def print_protocol(detector: str, batch: int, device: torch.device, more: dict[str, object]) -> None:
    for key, value in {**more, "detector": detector}.items():
        distributed.print0(f"{key}: {value}")
    distributed.print0(f"batch: {batch} x {distributed.world_size()} on {device.type}")
