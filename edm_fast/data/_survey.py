"""What a set of images holds: its shapes, the one line about it, and whether networks can be trained on it."""

from __future__ import annotations

from collections.abc import Iterable

from edm_fast.data._listing import Listing
from edm_fast.errors import UserError, count
from edm_fast.networks.sides import side_fault
from edm_fast.pictures import COLOURS

Shape = tuple[int, int, int]  # width, height, channels


def shape_text(shape: Shape) -> str:
    width, height, channels = shape
    return f"{width}x{height} {COLOURS.get(channels, f'with {channels} channels')}"


def fault(shape: Shape, halvings: int = 2) -> str:
    """Why a network that halves the side `halvings` times cannot be trained on such images; "" if it can."""
    width, height, channels = shape
    if width != height:
        return f"images are {width}x{height}, not square"
    if channels not in (1, 3):
        return f"images have {channels} channels; expected 1 (gray) or 3 (RGB)"
    return side_fault(width, halvings)


class Survey:
    """Names of images by shape, and how many of them hold more frames than the first.

    Headers are looked at, and pixels too if asked for; what cannot be read is an error, or else goes into `broken`.
    """

    def __init__(self, listing: Listing, names: Iterable[str], pixels: bool = False) -> None:
        self.listing = listing
        self.shapes: dict[Shape, list[str]] = {}
        self.animated = 0
        self.broken: list[str] = []
        for name in names:
            try:
                header = listing.header(name)
                if pixels:
                    listing.picture(name)
            except UserError as error:
                if not pixels:
                    raise
                self.broken.append(str(error))
                continue
            self.shapes.setdefault(header.shape, []).append(name)
            self.animated += header.animated

    def line(self, labels: str) -> str:
        """As "500 images of 32x32 RGB; labels: dataset.json, 10 classes, 3 without; left out: 4 hidden, 1 PDF"."""
        shapes = sorted(self.shapes)
        kinds = f"{len(shapes)} kinds, " if len(shapes) > 1 else ""
        ends = " to ".join(shape_text(shape) for shape in dict.fromkeys(shapes[:1] + shapes[-1:]))
        number = count(sum(map(len, self.shapes.values())), "image")
        parts = [f"{number} of {kinds}{ends or 'no readable kind'}", labels]
        if self.animated:
            parts.append(f"only the first frame of {count(self.animated, 'image')}")
        return "; ".join([*parts, self.listing.left_out_text()] if self.listing.left_out else parts)
