"""The four readers of images - convert, check, train, fid - on one path, and files for them."""

import io
import json
import warnings
import zipfile

import numpy as np
import PIL.Image

from edm_fast.data import ImageFolderDataset
from edm_fast.data.check import check
from edm_fast.data.convert import convert
from edm_fast.errors import UserError
from edm_fast.evaluation import fid


def picture(width=8, height=8, mode="RGB", seed=0, format="png", **options):
    """The bytes of an image of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(data, format, **options)
    return data.getvalue()


GOOD = {f"{i}.png": picture(seed=i) for i in range(3)}


def below(prefix):
    """The good images under longer names."""
    return {prefix + name: data for name, data in GOOD.items()}


def as_bytes(content):
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def make_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(as_bytes(content))
    return path


def make_zip(path, files, **options):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **options) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that occur twice
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, as_bytes(content))
    return path


def _convert(path, dest):
    said = []
    convert(path, dest, report=said.append)
    return said[0]


def _check(path):
    report = check(path)
    if report.problems:
        raise UserError(report.problems[0])
    return report.facts[0]


def _fid(path):
    said = []
    fid.open_images(path, report=said.append)
    return said[0]


def read(path, dest, labels=False):
    """What each reader says about `path`: its one line, or its refusal after "refused: "."""
    calls = {
        "convert": lambda: _convert(path, dest),
        "check": lambda: _check(path),
        "train": lambda: train(path, labels),
        "fid": lambda: _fid(path),
    }
    found = {}
    for name, call in calls.items():
        try:
            found[name] = call()
        except UserError as error:
            found[name] = f"refused: {error}"
        assert "\n" not in found[name]
    return found


def train(path, labels=False):
    """What training does with a data set before its first step."""
    dataset = ImageFolderDataset(path, use_labels=labels)
    line = dataset.survey(halvings=2)
    if labels and not dataset.has_labels:
        raise UserError("no labels")
    return line
