"""What a set of images holds: its shapes, the one line about it, and which shapes a network can take."""

from __future__ import annotations

from collections.abc import Iterable

from edm_fast.data._listing import Listing
from edm_fast.errors import count
from edm_fast.pictures import COLOURS, Header

Shape = tuple[int, int, int]  # width, height, channels


def shape_text(shape: Shape) -> str:
    width, height, channels = shape
    return f"{width}x{height} {COLOURS.get(channels, f'with {channels} channels')}"


def fault(shape: Shape, halvings: int = 2) -> str:
    """Why a network that halves the side `halvings` times cannot be trained on such images; "" if it can.

    Sides below 16 that are no power of two are refused as the published tool does, larger ones are not.
    """
    width, height, channels = shape
    if width != height:
        return f"images are {width}x{height}, not square"
    if channels not in (1, 3):
        return f"images have {channels} channels; expected 1 (gray) or 3 (RGB)"
    if width % 4 or (width < 16 and width & (width - 1)):
        return f"the side {width} is not a power of two from 4 up, nor a multiple of 4 from 16 up"
    if width % 2**halvings:
        return f"the side {width} cannot be halved {halvings} times (see --arch); expected a multiple of {2**halvings}"
    return ""


def note(shape: Shape) -> str:
    """What to know about images without a fault; "" if nothing."""
    side = shape[0]
    unfit = "" if side % 8 == 0 else ", and --arch=adm needs a multiple of 8"
    return f"the side {side} is not a power of two: the published tools refuse it{unfit}" if side & (side - 1) else ""


class Survey:
    """Names of images by shape, and how many of them hold more frames than the first."""

    def __init__(self, listing: Listing, names: Iterable[str] = ()) -> None:
        self.listing = listing
        self.shapes: dict[Shape, list[str]] = {}
        self.animated = 0
        for name in names:
            self.add(name, listing.header(name))

    def add(self, name: str, header: Header) -> None:
        self.shapes.setdefault(header.shape, []).append(name)
        self.animated += header.animated

    def line(self, labels: str) -> str:
        """As "500 images of 32x32 RGB; labels: dataset.json, 10 classes, 3 without; left out: 4 hidden, 1 PDF"."""
        shapes = sorted(self.shapes)
        kinds = f"{len(shapes)} kinds, " if len(shapes) > 1 else ""
        ends = " to ".join(shape_text(shape) for shape in dict.fromkeys(shapes[:1] + shapes[-1:]))
        parts = [
            f"{count(sum(map(len, self.shapes.values())), 'image')} of {kinds}{ends or 'no readable kind'}",
            labels,
        ]
        if self.animated:
            parts.append(f"only the first frame of {count(self.animated, 'image')}")
        return "; ".join([*parts, self.listing.left_out_text()] if self.listing.left_out else parts)
