"""Image files, decoded and encoded: which formats are read, and what becomes of modes, depths and orientation.

This is the only place that opens pictures; data sets, FID and the images that sampling wrote come through here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import PIL.Image
import PIL.ImageMode
import PIL.PngImagePlugin

from edm_fast.errors import UserError, UserOSError, one_line

# raster formats that Pillow decodes itself: no documents, no plugin that starts another program, no icons or films
FORMATS = (
    *("PNG", "JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "GIF", "TIFF"),
    *("BMP", "DIB", "PPM", "TGA", "PCX", "SGI", "QOI"),
)
KEY, GRID = "edm-fast", "grid"  # the text chunk of the PNGs this package writes, and its value in a grid of images
COLOURS = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGBA"}
# what Pillow, zlib, zipfile and tarfile raise for damaged files; RuntimeError: an encrypted member, an unknown method
DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, AttributeError, TypeError, struct.error),
    *(MemoryError, zlib.error, zipfile.BadZipFile, tarfile.TarError, PIL.Image.DecompressionBombError),
)
_DEEP = re.compile(r";(12|16|32)[A-Z]*$")  # raw modes of more than 8 bits, but BGR;16, which is 5 + 6 + 5 bits
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_UPRIGHT = {orientation: PIL.Image.Transpose[turn] for orientation, turn in enumerate(_TURNS, 2)}


@dataclass(frozen=True)
class Header:
    """The shape (width, height, channels) that `decode` will give, whether more frames follow, the text under KEY."""

    shape: tuple[int, int, int]
    animated: bool
    text: str


@functools.cache
def known_extensions() -> frozenset[str]:
    """Extensions of FORMATS in lower case, as Pillow registers them."""
    return frozenset(ext for ext, name in PIL.Image.registered_extensions().items() if name in FORMATS)


def is_picture_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in known_extensions()


def is_grid(head: bytes) -> bool:
    """True for the first bytes of a picture of many images, as `generate --grid` writes it."""
    return f"tEXt{KEY}\0{GRID}".encode() in head


@contextlib.contextmanager
def opened(file: IO[bytes], name: str) -> Iterator[PIL.Image.Image]:
    """The image in a file, of one of FORMATS and 8 bits per channel. Whatever goes wrong inside is told in one line."""
    known_extensions()  # registers the formats
    try:
        with PIL.Image.open(file, formats=[name for name in FORMATS if name in PIL.Image.OPEN]) as image:
            _check_depth(image, name)
            yield image
    except UserError:
        raise
    except MemoryError:
        raise UserOSError(f"image {name} is too large for the memory") from None
    except PIL.UnidentifiedImageError:  # its text names a Python object
        raise UserOSError(
            f"cannot read image {name}: empty, or not in a format that is read (PNG, JPEG, ...)"
        ) from None
    except DAMAGED as error:
        raise UserOSError(f"cannot read image {name}: {one_line(error)}; expected an undamaged image file") from error


def _check_depth(image: PIL.Image.Image, name: str) -> None:
    """Refuse more than 8 bits per channel, of which Pillow may keep the upper ones alone without a word."""
    tiles = getattr(image, "tile", None)  # [(decoder, box, offset, arguments)]
    arguments = tiles[0][3] if tiles else None
    raw, *more = arguments if isinstance(arguments, tuple) and arguments else (arguments,)
    deep = isinstance(raw, str) and _DEEP.search(raw) and raw != "BGR;16"
    deep = deep or (image.format == "PPM" and any(isinstance(top, int) and top > 255 for top in more[:1]))
    bits = getattr(image, "tag_v2", {}).get(258, (8,))  # BitsPerSample of TIFF
    if deep or image.mode in ("I", "F") or image.mode.startswith("I;") or max(np.atleast_1d(bits)) > 8:
        raise UserOSError(f"image {name} has more than 8 bits per channel; expected 8, convert it first")


def _plain_mode(image: PIL.Image.Image) -> str:
    """The mode that decode gives: L, LA, RGB or RGBA. Transparency is kept, and refused later rather than lost."""
    if image.mode in ("P", "PA"):
        return "RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB"
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return "RGB"
    return {"1": "L", "La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)


def _orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation 1 ... 8; a damaged block says nothing."""
    try:
        return int(image.getexif().get(274, 1))
    except DAMAGED:
        return 1


def header(file: IO[bytes], name: str) -> Header:
    """What the beginning of an image file tells, without its pixels."""
    with opened(file, name) as image:
        # a PNG's EXIF block may lie behind the pixels; asked for it, Pillow would decode them
        turned = (image.format != "PNG" or "exif" in image.info) and _orientation(image) in (5, 6, 7, 8)
        width, height = image.size[::-1] if turned and image.format != "TIFF" else image.size
        channels = len(PIL.ImageMode.getmode(_plain_mode(image)).bands)
        animated = image.format != "MPO" and getattr(image, "is_animated", False)  # a phone's JPEG holds a preview
        return Header((width, height, channels), animated, str(image.info.get(KEY, "")))


def decode(data: bytes, name: str) -> np.ndarray:
    """(H, W) uint8 of gray images, (H, W, C) of others, upright, of several frames the first."""
    with opened(io.BytesIO(data), name) as image:
        image.load()  # a TIFF is upright from here on
        mode = _plain_mode(image)
        plain = image if image.mode == mode else image.convert(mode)
        turn = _UPRIGHT.get(_orientation(image))
        return np.array(plain if turn is None else plain.transpose(turn))


def encode_png(image: np.ndarray, text: str = "", **options: Any) -> bytes:
    """PNG of an image (H, W), (H, W, 1) or (H, W, 3) uint8, of mode L or RGB; `text` is stored under KEY."""
    info = PIL.PngImagePlugin.PngInfo()
    if text:
        info.add_text(KEY, text)
    image = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="png", pnginfo=info, **options)
    return buffer.getvalue()


def encode_gif(frames: Sequence[np.ndarray], milliseconds: Sequence[int]) -> bytes:
    """An animation that repeats, of pictures (H, W, 1 or 3) uint8 of one shape, each shown for so long."""
    images = [
        PIL.Image.fromarray(np.ascontiguousarray(frame.squeeze(2) if frame.shape[2] == 1 else frame))
        for frame in frames
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="gif", save_all=True, append_images=images[1:], duration=[*milliseconds], loop=0, disposal=1
    )
    return buffer.getvalue()
