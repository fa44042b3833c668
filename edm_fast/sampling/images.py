"""Pixels and PNG files of sampled images."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm_fast import pictures
from edm_fast.errors import UserError
from edm_fast.files import atomic_write


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """x (N, C, H, W) -> (N, H, W, C): x 127.5 + 128, clipped to [0, 255] and truncated, so that -1 -> 0, 0 -> 128."""
    pixels = (x.to(torch.float64) * 127.5 + 128).clip(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def image_name(seed: int, subdirs: bool = False) -> str:
    """`000042.png`, or `000000/000042.png` with a folder for each thousand seeds."""
    name = f"{seed:06d}.png"
    return f"{seed - seed % 1000:06d}/{name}" if subdirs else name


def save_png(path: str | os.PathLike[str], image: np.ndarray, made_with: str = "") -> None:
    """Write an image (H, W, 1) as mode L or (H, W, 3) as RGB, whole or not at all; `made_with` becomes a text chunk."""
    data = pictures.encode_png(image, made_with)
    with atomic_write(path, kind="png") as file:
        file.write(data)


class Stored(NamedTuple):
    """Of a PNG: the text that save_png has stored, "" if it holds none; whether all of it can be decoded."""

    text: str
    whole: bool


def stored(read: Callable[[], bytes]) -> Stored:
    """What the file that read() gives holds."""
    text = ""
    try:
        data = read()
        text = pictures.header(io.BytesIO(data), "").text
        pictures.decode(data, "")
    except UserError:
        return Stored(text, False)
    return Stored(text, True)


def read_png(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W, C) uint8."""
    return np.atleast_3d(pictures.decode(Path(path).read_bytes(), str(path)))


def grid_shape(count: int) -> tuple[int, int]:
    """(rows, columns) for `count` images: as square as possible, full where that costs at most a 1 : 2 shape."""
    for rows in range(math.isqrt(count), 0, -1):
        if count % rows == 0 and count // rows <= 2 * rows:
            return rows, count // rows
    columns = math.isqrt(count - 1) + 1
    return -(-count // columns), columns


def arrange(images: torch.Tensor | Sequence[np.ndarray]) -> np.ndarray:
    """One picture (rows H, columns W, C) of images, row by row; what is left over stays white.

    Images as samplers return them, (N, C, H, W) in [-1, 1], or of bytes, each (H, W, C).
    """
    if isinstance(images, torch.Tensor):
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise UserError(
                f"images are {images.dtype} {tuple(images.shape)}; expected floating-point numbers (N, 1 or 3, H, W)"
            )
        if not images.isfinite().all():
            raise UserError("images hold numbers that are not finite; expected [-1, 1]")
        images = list(to_uint8(images.detach()))
    if not len(images):
        raise UserError("no images to arrange in a grid")
    for image in images:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] > 3:
            raise UserError("images are no bytes (H, W, 1 or 3); expected these, or a tensor as samplers return it")
    rows, columns = grid_shape(len(images))
    height, width, channels = images[0].shape
    picture = np.full((rows, height, columns, width, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        if image.shape != images[0].shape:
            raise UserError(f"a grid needs images of one shape; got {images[0].shape} and {image.shape}")
        picture[i // columns, :, i % columns] = image
    return picture.reshape(rows * height, columns * width, channels)


def save_grid(path: str | os.PathLike[str], images: torch.Tensor | Sequence[np.ndarray]) -> None:
    """Write `arrange(images)` as a PNG, marked so that no data set takes it for one of its images."""
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path} is no name for a grid of images; expected one that ends in .png")
    save_png(Path(path), arrange(images), pictures.GRID)
