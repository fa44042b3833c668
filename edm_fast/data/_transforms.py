"""Crops and resizing of the dataset conversion. Images (H, W) or (H, W, 3) uint8; mostly Pillow's Lanczos filter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import PIL.Image

from edm_fast.errors import UserError

Transform = Callable[[np.ndarray], np.ndarray | None]  # None: the image is skipped
MAX_SIDE = 8192  # pixels; an image of 8192x8192 takes 200 MB at each step


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image at (height, width); the aspect ratio is not kept. A fitting image comes back as it is."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.LANCZOS))


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Gray (H, W) repeated to (H, W, 3)."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def center_crop(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The largest centred square, as RGB, resized to (height, width)."""
    rows, cols = image.shape[:2]
    m = min(rows, cols)
    square = image[(rows - m) // 2 : (rows + m) // 2, (cols - m) // 2 : (cols + m) // 2]
    return resize(to_rgb(square), width, height)


def center_crop_wide(image: np.ndarray, width: int, height: int) -> np.ndarray | None:
    """Full width, centred rows, resized to (height, width), on a black (width, width) square; None if too small.

    ch = round(width H / W) rows are kept, as published; images with W < width or ch < height are skipped.
    """
    rows, cols = image.shape[:2]
    ch = round(width * rows / cols)
    if cols < width or ch < height:
        return None
    band = resize(to_rgb(image[(rows - ch) // 2 : (rows + ch) // 2]), width, height)
    canvas = np.zeros((width, width, 3), dtype=np.uint8)
    canvas[(width - height) // 2 : (width + height) // 2] = band
    return canvas


def center_crop_dhariwal(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The centre of the image, as RGB, with its shorter side resized to width = height, as for ADM.

    Halved by 2x2 means while the shorter side has at least twice the length, then resized with Pillow's bicubic filter.
    Dhariwal and Nichol 2021.
    """
    picture = PIL.Image.fromarray(to_rgb(image))
    while min(picture.size) >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)
    scale = width / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture)[top : top + height, left : left + width]


TRANSFORMS: dict[str, Callable[[np.ndarray, int, int], np.ndarray | None]] = {
    "center-crop": center_crop,
    "center-crop-wide": center_crop_wide,
    "center-crop-dhariwal": center_crop_dhariwal,
}


def transform_by_name(name: str | None, resolution: tuple[int, int] | None) -> Transform:
    """image -> image for `--transform` and `--resolution` (width, height)."""
    if name not in (None, *TRANSFORMS):
        raise UserError(f"unknown transform {name!r}; expected one of {', '.join(TRANSFORMS)}")
    if resolution is None and name is not None:
        raise UserError(f"the transform {name} needs a resolution; expected --resolution=WxH")
    if resolution is None:
        return lambda image: image
    width, height = resolution
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UserError(f"resolution {width}x{height}; expected a width and a height from 1 to {MAX_SIDE}")
    if name == "center-crop-wide" and height > width:
        raise UserError(f"center-crop-wide at {width}x{height} is not wide; expected a width of at least the height")
    if name == "center-crop-dhariwal" and height != width:
        raise UserError(f"center-crop-dhariwal at {width}x{height}; expected a width equal to the height")
    transform = resize if name is None else TRANSFORMS[name]
    return lambda image: transform(image, width, height)
